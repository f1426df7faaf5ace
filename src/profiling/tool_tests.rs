//! Tools that behave and tools that do not.

use super::testing::script;
use super::*;

#[test]
fn tools_that_are_absent_fail_or_hang_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let mut tools = Tools::only(folder.path(), Path::new("/nonexistent"));
    let none: [&str; 0] = [];
    assert!(matches!(tools.run("smi", &none), Err(ToolError::Absent)));
    script(folder.path(), "smi", "echo one; echo two; echo bad >&2; exit 9");
    let output = tools.run("smi", &none).unwrap();
    assert_eq!(output.stdout, "one\ntwo\n");
    assert_eq!(output.success(), Err("bad (exit code 9)".into()));
    script(folder.path(), "smi", "exit 1");
    let words = tools.run("smi", &none).unwrap().success().unwrap_err();
    assert_eq!(words, "exit code 1 without a word");
    script(folder.path(), "smi", "sleep 30");
    tools.deadline = Duration::from_millis(100);
    let begin = Instant::now();
    assert!(matches!(tools.run("smi", &none), Err(ToolError::Late(_))));
    assert!(begin.elapsed() < Duration::from_secs(10));
}

#[test]
fn more_output_than_a_pipe_holds_arrives_whole() {
    let folder = tempfile::tempdir().unwrap();
    script(folder.path(), "much", "head -c 300000 /dev/zero | tr '\\0' x");
    let tools = Tools::only(folder.path(), Path::new("/nonexistent"));
    let none: [&str; 0] = [];
    assert_eq!(tools.run("much", &none).unwrap().stdout.len(), 300_000);
}

#[test]
fn lines_arrive_before_the_tool_ends_and_survive_its_end_at_the_deadline() {
    let folder = tempfile::tempdir().unwrap();
    script(folder.path(), "slow", "echo one; printf 'two\\nhalf'; sleep 30");
    let tools = Tools::only(folder.path(), Path::new("/nonexistent"));
    let mut lines = Vec::new();
    let take = &mut |line: &str| lines.push(line.to_owned());
    let late = run_lines(tools.command("slow").unwrap(), Duration::from_millis(500), take);
    assert!(matches!(late, Err(ToolError::Late(_))));
    assert_eq!(lines, ["one", "two"]);
}
