//! What `scatter plan` says of its plan when it is asked: reasons, what-ifs, groups, a picture.

use crate::cli::args::Plan as Args;
use crate::cli::exit::{Coded, Exit, Failure, Outcome};
use crate::commands::write_file;
use planner::answers::{Question, QuestionError, groups_table, what_if, why};
use planner::picture::{self, Sharing};
use planner::{Inventory, Plan, PlanError, Signatures};

/// Whether anything is asked; then the plan itself is not printed.
pub(crate) fn are_asked(args: &Args) -> bool {
    args.explain.is_some() || args.groups || args.svg.is_some() || !questions(args).is_empty()
}

fn questions(args: &Args) -> Vec<Question> {
    let without = args.without.iter().map(|host| Question::Without(host.clone()));
    let apart = args.apart.iter().map(|(a, b)| Question::Apart(a.clone(), b.clone()));
    without.chain(apart).collect()
}

/// Answers everything that is asked; code 4 if one of the answers is that there would be no plan.
pub(crate) fn answer(
    args: &Args,
    inventory: &Inventory,
    signatures: Option<&Signatures>,
    plan: &Plan,
) -> Outcome {
    let mut exit = Exit::Done;
    if let Some(vms) = &args.explain {
        if let Some(unknown) = vms.iter().find(|name| !inventory.vms.iter().any(|vm| vm.name == **name)) {
            return Err(Failure::new(Exit::Usage, format!("the inventory has no VM `{unknown}`")));
        }
        println!();
        for reason in why(inventory, signatures, plan, vms).or_exit(Exit::Input)? {
            print!("{reason}");
        }
    }
    for question in questions(args) {
        println!();
        match what_if(inventory, signatures, plan, args.seed, &question) {
            Ok(text) => print!("{text}"),
            Err(QuestionError::Plan(why @ PlanError::Place(_))) => {
                println!("{}: there is no plan: {:#}", asked(&question), anyhow::Error::new(why));
                exit = Exit::Plan;
            }
            Err(why @ QuestionError::Pinned { .. }) => {
                println!("{}: there is no plan: {why}", asked(&question));
                exit = Exit::Plan;
            }
            Err(QuestionError::Plan(why)) => return Err(Failure { exit: Exit::Input, error: why.into() }),
            Err(why) => return Err(Failure { exit: Exit::Usage, error: why.into() }),
        }
    }
    if args.groups {
        println!();
        print!("{}", groups_table(plan).or_exit(Exit::Input)?);
    }
    if let Some(path) = &args.svg {
        let sharing = signatures.map(|signatures| Sharing::measured(inventory, signatures)).transpose();
        write_file(path, &picture::svg(plan, sharing.or_exit(Exit::Input)?.as_ref()))?;
        println!("drew {}", path.display());
    }
    Ok(exit)
}

fn asked(question: &Question) -> String {
    match question {
        Question::Without(host) => format!("without {host}"),
        Question::Apart(a, b) => format!("with {a} and {b} apart"),
        _ => "then".to_owned(),
    }
}
