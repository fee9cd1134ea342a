//! What the module promises as a whole; the checks have tests of their own, and tests/check the built program's.

use super::*;

#[test]
fn ids_are_in_one_list_and_spelled_the_same_everywhere() {
    let names: Vec<&str> = Id::ALL.iter().map(|(id, _)| id.as_str()).collect();
    let written: Vec<String> =
        Id::ALL.iter().map(|(id, _)| serde_json::to_value(id).unwrap().as_str().unwrap().to_owned()).collect();
    assert_eq!(names, written);
    assert!(Id::ALL.iter().enumerate().all(|(at, (id, help))| *id as usize == at && !help.is_empty()));
    for name in names {
        assert!(overview().contains(&format!("  {name} ")), "{name}");
    }
}

#[test]
fn verdicts_are_ordered_by_weight() {
    assert!(Verdict::Ok < Verdict::Skipped && Verdict::Skipped < Verdict::Warn && Verdict::Warn < Verdict::Fail);
}
