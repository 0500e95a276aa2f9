//! Keys: made, shown, refused.

use crate::support::Bench;
use std::fs;
use std::os::unix::fs::PermissionsExt;

#[test]
fn keys_are_made_once_shown_and_never_printed() {
    let bench = Bench::new();
    bench.keys(&["h1"]);
    let secret = fs::read_to_string(bench.path("keys/h1/host.key.pem")).expect("a key");
    let mode = fs::metadata(bench.path("keys/h1/host.key.pem")).expect("a key").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let shown = bench.run(&["keys", "show", "keys"]).ok();
    assert!(shown.contains("h1") && shown.contains("receiver") && shown.contains("sender"), "{shown}");
    let line = secret.lines().nth(1).expect("PEM has lines");
    assert!(!shown.contains(line) && !shown.contains("PRIVATE"), "a secret is shown");
    let again = bench.run(&["keys", "init", "keys"]).fails(3);
    assert!(again.contains("there already"), "{again}");
    let again = bench.run(&["keys", "host", "keys", "h1"]).fails(3);
    assert!(again.contains("h1"), "{again}");
    bench.run(&["keys", "host", "keys", "no such name"]).fails(3);
    bench.run(&["keys", "host", "keys", "h2", "--days", "0"]).fails(2);
    let none = bench.run(&["keys", "show", "."]).fails(3);
    assert!(none.contains("keys init"), "{none}");
}

#[test]
fn receive_refuses_wrong_keys_and_configurations() {
    let bench = Bench::new();
    bench.keys(&["h1"]);
    let wrong = bench.run(&["receive", "--name", "h2", "--keys", "keys/h1"]).fails(3);
    assert!(wrong.contains("h1") && wrong.contains("h2"), "{wrong}");
    let wrong = bench.run(&["receive", "--keys", "keys/src"]).fails(3);
    assert!(wrong.contains("receiver"), "{wrong}");
    let wrong = bench.run(&["receive", "--keys", "nowhere"]).fails(3);
    assert!(wrong.contains("nowhere"), "{wrong}");
    let wrong = bench.run(&["receive", "--keys", "keys/h1", "--interface", "nope0"]).fails(8);
    assert!(wrong.contains("nope0") && wrong.contains("lo"), "{wrong}");
    bench.write("receive.toml", "keys = \"keys/h1\"\nstores = \"x\"\n");
    let wrong = bench.run(&["receive", "--config", "receive.toml"]).fails(3);
    assert!(wrong.contains("stores") && wrong.contains("receive.toml"), "{wrong}");
    bench.write("receive.json", "{\"keys\": \"keys/h1\", \"stores\": \"x\"}");
    let wrong = bench.run(&["receive", "--config", "receive.json"]).fails(3);
    assert!(wrong.contains("stores"), "{wrong}");
}
