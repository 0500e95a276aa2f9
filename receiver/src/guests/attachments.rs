//! A VM's attachments while they come in: compressed parts, then bytes of the length and digest that were offered.

use wire::control::{Attachment, AttachmentOffer};
use wire::limits;

/// Zstandard may enlarge what it cannot compress by a little.
const PACKED_SLACK: usize = 64 << 10;

/// See the module's text.
pub(super) struct Attachments {
    offers: Vec<AttachmentOffer>,
    packed: Vec<Vec<u8>>,
    done: Vec<Option<Vec<u8>>>,
}

impl Attachments {
    pub(super) fn new(offers: &[AttachmentOffer]) -> Self {
        Self {
            offers: offers.to_vec(),
            packed: vec![Vec::new(); offers.len()],
            done: vec![None; offers.len()],
        }
    }

    /// Takes in a part. One of an attachment that is here already, as on another connection, is left out.
    ///
    /// # Errors
    /// In words; the sender is not to be trusted then.
    pub(super) fn take(&mut self, part: Attachment) -> Result<(), String> {
        let index = usize::from(part.index);
        let Some(offer) = self.offers.get(index) else {
            return Err(format!("attachment {index} of VM {} was not offered", part.vm));
        };
        if self.done[index].is_some() {
            return Ok(());
        }
        let packed = &mut self.packed[index];
        packed.extend_from_slice(&part.bytes);
        if packed.len() > limits::ATTACHMENT_BYTES_MAX + PACKED_SLACK {
            return Err(format!("attachment {} of VM {} does not end", offer.name, part.vm));
        }
        if part.last {
            let packed = std::mem::take(packed);
            self.done[index] = Some(
                unpack(offer, &packed)
                    .map_err(|reason| format!("attachment {} of VM {}: {reason}", offer.name, part.vm))?,
            );
        }
        Ok(())
    }

    /// Another connection begins: parts of the last one are void.
    pub(super) fn restart(&mut self) {
        self.packed.iter_mut().for_each(Vec::clear);
    }

    /// All of them, once they are here.
    pub(super) fn all(&self) -> Option<Vec<(String, Vec<u8>)>> {
        let named = self.offers.iter().zip(&self.done);
        named.map(|(offer, done)| Some((offer.name.clone(), done.clone()?))).collect()
    }
}

fn unpack(offer: &AttachmentOffer, packed: &[u8]) -> Result<Vec<u8>, String> {
    let len = offer.len as usize;
    let bytes = zstd::bulk::decompress(packed, len).map_err(|error| error.to_string())?;
    if bytes.len() != len {
        return Err(format!("{} bytes, {len} were offered", bytes.len()));
    }
    if *blake3::hash(&bytes).as_bytes() != offer.digest {
        return Err("its bytes do not have the digest that was offered".into());
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(bytes: &[u8]) -> Vec<Attachment> {
        let packed = zstd::bulk::compress(bytes, 1).expect("memory");
        let count = packed.len().div_ceil(100);
        let part = |(at, bytes): (usize, &[u8])| Attachment {
            vm: 3,
            index: 0,
            last: at + 1 == count,
            bytes: bytes.to_vec(),
        };
        packed.chunks(100).enumerate().map(part).collect()
    }

    fn offered(bytes: &[u8]) -> Attachments {
        let digest = *blake3::hash(bytes).as_bytes();
        let len = u32::try_from(bytes.len()).expect("small");
        Attachments::new(&[AttachmentOffer { name: "state".into(), len, digest }])
    }

    fn bytes() -> Vec<u8> {
        (0..5000_u32).flat_map(|word| word.wrapping_mul(0x9e37_79b9).to_le_bytes()).collect()
    }

    #[test]
    fn parts_become_the_bytes_that_were_offered() {
        let (bytes, mut taken) = (bytes(), offered(&bytes()));
        let parts = parts(&bytes);
        // A connection that breaks in the middle, and the next one.
        taken.take(parts[0].clone()).expect("offered");
        taken.restart();
        for part in &parts {
            assert!(taken.all().is_none());
            taken.take(part.clone()).expect("offered");
        }
        assert_eq!(taken.all(), Some(vec![("state".to_owned(), bytes)]));
        taken.take(parts[0].clone()).expect("here already");
    }

    #[test]
    fn other_bytes_are_refused_by_name() {
        let mut longer = bytes();
        longer.push(1);
        for (wrong, word) in
            [(vec![0; 20_000], "digest"), (longer, "attachment state of VM 3"), (vec![1], "1 bytes")]
        {
            let mut taken = offered(&bytes());
            let result = parts(&wrong).into_iter().try_for_each(|part| taken.take(part));
            assert!(result.as_ref().is_err_and(|error| error.contains(word)), "{result:?}");
        }
        let mut unknown = parts(&bytes());
        unknown[0].index = 1;
        assert!(offered(&bytes()).take(unknown.remove(0)).is_err());
        let endless =
            Attachment { vm: 3, index: 0, last: false, bytes: vec![0; limits::ATTACHMENT_BYTES_MAX] };
        let mut taken = offered(&bytes());
        taken.take(endless.clone()).expect("might end");
        assert!(taken.take(endless).is_err_and(|error| error.contains("does not end")));
    }
}
