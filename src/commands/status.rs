//! `scatter status`: which clones run at a plan's hosts, and on whom they depend.

use crate::cli::clones::Status;
use crate::cli::exit::{Coded, Exit, Outcome};
use crate::commands::send::leave::{self, Standing};
use crate::commands::{host_addresses, load_keys, read_plan, sender_keys};
use net::control::connect;
use net::pki::Identity;
use planner::Plan;
use serde_json::json;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use wire::control::{CloneStatus, HostStatus, Message, ToHost, ToSender, TransferStatus};

/// A host that says nothing for so long cannot be asked.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// What hosts are asked in place of an offer, and answer by what runs there.
pub(crate) struct Question<'a> {
    /// The keys named, if any.
    pub(crate) keys: Option<&'a PathBuf>,
    pub(crate) ask: ToHost,
    /// A host that says nothing for so long cannot be asked.
    pub(crate) answer_max: Duration,
}

impl<'a> Question<'a> {
    fn status(args: &'a Status) -> Self {
        Self { keys: args.keys.as_ref(), ask: ToHost::Status, answer_max: ANSWER_MAX }
    }
}

/// What each host of a plan says, in the plan's order.
pub(crate) fn answers(plan: &Plan, question: &Question<'_>) -> Outcome<Vec<Result<HostStatus, String>>> {
    let identity = Arc::new(load_keys(&sender_keys(question.keys, plan))?);
    let (frame, answer_max) = (Arc::new(question.ask.encode()), question.answer_max);
    let addresses = host_addresses(plan)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().or_exit(Exit::System)?;
    Ok(runtime.block_on(async {
        let mut tasks = Vec::new();
        for (host, address) in plan.hosts.iter().zip(addresses) {
            let (identity, frame, name) = (Arc::clone(&identity), Arc::clone(&frame), host.name.clone());
            tasks.push(tokio::spawn(async move {
                let asked = tokio::time::timeout(answer_max, ask(address, &identity, &name, &frame)).await;
                asked.unwrap_or_else(|_| Err(format!("no answer in {} s", answer_max.as_secs())))
            }));
        }
        let mut answers = Vec::new();
        for task in tasks {
            answers.push(task.await.unwrap_or_else(|error| Err(error.to_string())));
        }
        answers
    }))
}

/// The clones of all hosts that can be asked.
pub(crate) fn clones(args: &Status) -> Outcome<Vec<CloneStatus>> {
    let answers = answers(&read_plan(&args.group)?, &Question::status(args))?;
    let transfers = answers.into_iter().flatten().flat_map(|status| status.transfers);
    Ok(transfers.flat_map(|transfer| transfer.clones).collect())
}

pub(crate) fn run(args: &Status) -> Outcome {
    let plan = read_plan(&args.group)?;
    let answers = answers(&plan, &Question::status(args))?;
    let named: Vec<(&str, &Result<HostStatus, String>)> =
        plan.hosts.iter().map(|host| host.name.as_str()).zip(&answers).collect();
    let leaving = leave::standing(&args.group, &plan)?;
    if args.json {
        let one = |of: &Standing| json!({"vm": of.vm, "state": of.words, "outcome": of.outcome});
        let leaving: Vec<_> = leaving.iter().map(one).collect();
        println!("{}", json!({"leaving": leaving, "hosts": named.iter().map(as_json).collect::<Vec<_>>()}));
    } else {
        leaving.iter().for_each(|of| println!("{}: {}", of.vm, of.words));
        named.iter().for_each(print);
    }
    let failed = answers.iter().filter(|answer| answer.is_err()).count();
    Ok(match failed {
        0 => Exit::Done,
        count if count == answers.len() => Exit::AllFailed,
        _ => Exit::SomeFailed,
    })
}

async fn ask(
    address: SocketAddr,
    identity: &Identity,
    name: &str,
    frame: &[u8],
) -> Result<HostStatus, String> {
    let control = connect(address, identity, name).await.map_err(|error| error.to_string())?;
    let (mut reader, mut writer) = control.split();
    writer.write_frame(frame).await.map_err(|error| error.to_string())?;
    match reader.read_frame().await {
        Ok(Some(frame)) => match ToSender::decode(&frame) {
            Ok(ToSender::Status(status)) => Ok(status),
            Ok(_) => Err("it answered something else: is it of another version?".into()),
            Err(error) => Err(error.to_string()),
        },
        Ok(None) => Err("it closed the connection: is it of another version?".into()),
        Err(error) => Err(error.to_string()),
    }
}

/// On whom the transfer's clones depend, in words.
fn dependence(transfer: &TransferStatus) -> String {
    match &transfer.sender {
        Some(sender) => format!("fed by {sender}"),
        None if transfer.clones.iter().any(|clone| clone.missing_pages > 0 && !clone.over) => {
            "NOBODY brings what is missing: start the same `scatter clone` again".to_owned()
        }
        None if transfer.peers.is_empty() => "needs nobody".to_owned(),
        None => format!("needs nobody: {} brought what the sender did not", transfer.peers.join(", ")),
    }
}

fn print((host, answer): &(&str, &Result<HostStatus, String>)) {
    let status = match answer {
        Ok(status) if status.transfers.is_empty() => return println!("{host}: no clones"),
        Ok(status) => status,
        Err(reason) => return println!("{host}: cannot be asked: {reason}"),
    };
    for transfer in &status.transfers {
        println!("{host}: {}: {}", transfer.transfer, dependence(transfer));
        for clone in &transfer.clones {
            let state = match clone {
                clone if clone.over => "over".to_owned(),
                clone if clone.starting => "starting".to_owned(),
                clone if clone.missing_pages > 0 => format!("runs, {} pages missing", clone.missing_pages),
                _ => "independent".to_owned(),
            };
            println!("  {}: {state}; {}", clone.name, clone.words);
        }
        if transfer.more > 0 {
            println!("  and {} more", transfer.more);
        }
    }
}

fn as_json((host, answer): &(&str, &Result<HostStatus, String>)) -> serde_json::Value {
    let status = match answer {
        Ok(status) => status,
        Err(reason) => return json!({"host": host, "error": reason}),
    };
    let clone = |clone: &CloneStatus| {
        json!({"name": clone.name, "starting": clone.starting, "over": clone.over,
            "missing_pages": clone.missing_pages, "words": clone.words})
    };
    let transfer = |transfer: &TransferStatus| {
        json!({"transfer": transfer.transfer, "sender": transfer.sender, "peers": transfer.peers, "more": transfer.more,
            "clones": transfer.clones.iter().map(clone).collect::<Vec<_>>()})
    };
    json!({"host": host, "transfers": status.transfers.iter().map(transfer).collect::<Vec<_>>()})
}
