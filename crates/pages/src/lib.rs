//! Page identity: images, uniform pages, merge index, bitmaps, page encodings.
