//! What the command says of itself.

use crate::support::Bench;

const COMMANDS: [&str; 16] = [
    "demo",
    "keys",
    "receive",
    "measure",
    "plan",
    "simulate",
    "send",
    "clone",
    "capture",
    "microvm",
    "status",
    "report",
    "doctor",
    "schema",
    "completions",
    "man",
];

#[test]
fn every_command_has_help_with_examples() {
    let bench = Bench::new();
    let help = bench.run(&["--help"]).ok();
    assert!(help.contains("Exit codes:") && help.contains("5  some hosts failed"), "{help}");
    for command in COMMANDS {
        assert!(help.contains(&format!("\n  {command} ")), "{command} is not listed");
        let help = bench.run(&[command, "--help"]).ok();
        assert!(help.contains("Examples:") && help.contains(&format!("scatter {command}")), "{help}");
    }
}

#[test]
fn wrong_usage_is_code_2_and_says_what_is_right() {
    let bench = Bench::new();
    bench.run(&[]).fails(2);
    bench.run(&["fly"]).fails(2);
    bench.run(&["send"]).fails(2);
    let wrong = bench.run(&["send", "--group", "plan.json", "--rate", "fast"]).fails(2);
    assert!(wrong.contains("900M"), "{wrong}");
    let wrong = bench.run(&["send", "--group", "plan.json", "--encoding", "gzip"]).fails(2);
    assert!(wrong.contains("zstd:LEVEL"), "{wrong}");
    bench.run(&["send", "--group", "plan.json", "--symbol-size", "9001"]).fails(2);
}

#[test]
fn completions_and_manual_pages_are_generated() {
    let bench = Bench::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(bench.run(&["completions", shell]).ok().contains("receive"), "{shell}");
    }
    assert!(bench.run(&["man"]).ok().contains(".TH scatter"));
    bench.run(&["man", "--dir", "man"]).ok();
    for page in ["scatter.1", "scatter-send.1", "scatter-keys-host.1"] {
        assert!(bench.path("man").join(page).is_file(), "{page}");
    }
}
