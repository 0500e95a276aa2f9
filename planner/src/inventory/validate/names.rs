//! What a name may be, and which one was meant.

use super::Problem;

/// Names end up in certificates, file names and terminals.
pub(super) fn check_name(kind: &'static str, name: &str, length_max: usize, found: &mut Vec<Problem>) {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    let (why, way_out) = if name.is_empty() {
        ("is empty", "give it one")
    } else if name.contains(['/', '\\']) {
        ("holds a path separator", "files are named after it: use letters, digits, `-`, `.` and `_`")
    } else if name.len() > length_max {
        ("is too long", "use at most 200 characters")
    } else if kind == "transfer" {
        // Shown only, so spaces and other scripts are welcome.
        if name.chars().any(char::is_control) {
            ("holds control characters", "take them out")
        } else {
            return;
        }
    } else if !name.chars().all(is_plain) {
        ("holds other characters than letters, digits, `-`, `.` and `_`", "use these only")
    } else if name.starts_with(['.', '-']) {
        ("begins with a dot or a dash", "begin it with a letter or a digit")
    } else {
        return;
    };
    found.push(Problem::Name { kind, name: name.to_owned(), why, way_out });
}

/// The name that differs least, if it differs by at most a third.
pub(super) fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<String> {
    let (distance, near) = names.map(|other| (edit_distance(name, other), other)).min()?;
    (distance * 3 <= name.chars().count().max(3)).then(|| near.to_owned())
}

/// Levenshtein's distance, in O(length^2).
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
