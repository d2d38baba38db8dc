//! `oomprobe resolve` as a user runs it.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

fn oomprobe(host_root: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_oomprobe"));
    command.arg("--host-root").arg(host_root).arg("resolve");
    command
}

/// Runs with `input` on standard input.
fn run(command: &mut Command, input: &[u8]) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    output
}

fn lines(output: &Output) -> Vec<Value> {
    let text = std::str::from_utf8(&output.stdout).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn standard_input_is_answered_line_by_line_in_order() {
    let nowhere = tempfile::tempdir().unwrap();
    let file = include_str!("data/cgroup-vectors.json");
    let vectors: Vec<Value> = serde_json::from_str(file).unwrap();
    let mut input = Vec::new();
    for vector in &vectors {
        input.extend_from_slice(vector["path"].as_str().unwrap().as_bytes());
        input.push(b'\n');
    }
    let output = run(oomprobe(nowhere.path()).arg("-"), &input);
    assert!(output.status.success());
    let answers = lines(&output);
    assert_eq!(answers.len(), vectors.len());
    for (vector, answer) in vectors.iter().zip(&answers) {
        assert_eq!(answer["path"], vector["path"]);
        for (key, value) in vector["expect"].as_object().unwrap() {
            assert_eq!(answer.get(key), Some(value), "{key} of {}", vector["path"]);
        }
    }
}

#[test]
fn bad_lines_have_answers_too() {
    let nowhere = tempfile::tempdir().unwrap();
    let mut input = b"\n\xff\xfe/\x1b[31m\n".to_vec();
    input.extend(std::iter::repeat_n(b'x', 200_000));
    input.extend_from_slice(b"\n/docker");
    let output = run(oomprobe(nowhere.path()).arg("-"), &input);
    assert!(output.status.success());
    let answers = lines(&output);
    assert_eq!(answers.len(), 4);
    assert_eq!(answers[0]["path"], "");
    assert_eq!(answers[1]["path"], "\u{fffd}\u{fffd}/\u{1b}[31m");
    assert!(answers[2]["error"].is_string());
    assert_eq!(answers[3]["orchestrator"], "none");
    assert!(!output.stdout.contains(&0x1b), "escaped in JSON");
}

#[test]
fn an_answer_comes_before_the_next_question() {
    let nowhere = tempfile::tempdir().unwrap();
    let mut child = oomprobe(nowhere.path())
        .arg("-")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    for path in ["/kubepods", "/user.slice"] {
        writeln!(stdin, "{path}").unwrap();
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let answer: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(answer["path"], path);
    }
    drop(stdin);
    assert!(child.wait().unwrap().success());
}

#[test]
fn names_are_nested_as_opentelemetry_has_them() {
    let host = tempfile::tempdir().unwrap();
    let uid = "6a4ce4a0-ba47-11ea-b2a7-0cc47ac5979e";
    let id = "a".repeat(64);
    let logs = host.path().join("var/log/containers");
    std::fs::create_dir_all(&logs).unwrap();
    let target = format!("/var/log/pods/shop_web-0_{uid}/app/7.log");
    std::os::unix::fs::symlink(target, logs.join(format!("web-0_shop_app-{id}.log"))).unwrap();

    let path = format!("/kubepods/pod{uid}/{id}");
    let output = run(oomprobe(host.path()).arg(&path), b"");
    let answer = &lines(&output)[0];
    assert_eq!(
        answer["k8s"],
        json!({
            "pod": {"name": "web-0", "uid": uid},
            "namespace": {"name": "shop"},
            "container": {"name": "app", "restart_count": 7},
        })
    );
    assert_eq!(answer["container"], json!({"id": id}));
    assert_eq!(answer["resolution"]["resolved_by"], "log_link");
    assert_eq!(answer["resolution"]["trusted"], true);
}

#[test]
fn what_does_not_exist_fails_with_a_line() {
    let output = run(oomprobe(Path::new("/")).args(["--pid", "4294967295"]), b"");
    assert_eq!(output.status.code(), Some(1));
    let answer = &lines(&output)[0];
    assert_eq!(answer["process"]["pid"], 4_294_967_295_u32);
    assert!(
        answer["error"]
            .as_str()
            .unwrap()
            .contains("no such process")
    );
}

#[test]
fn this_process_is_found_by_pid_and_by_id() {
    let pid = std::process::id().to_string();
    let output = run(oomprobe(Path::new("/")).args(["--pid", &pid]), b"");
    assert!(output.status.success());
    let answer = &lines(&output)[0];
    let path = answer["path"].as_str().unwrap();

    let found = match oomprobe::identity::hierarchy::find(Path::new("/")) {
        Ok(found) if found.memory.is_whole() => found,
        Ok(_) => return eprintln!("skipped: in a private cgroup namespace"),
        Err(error) => return eprintln!("skipped: {error}"),
    };
    let tree = oomprobe::identity::tree::Tree::open(&found).unwrap();
    let id = tree.id(found.memory.hierarchy, path.as_bytes()).unwrap();
    let output = run(
        oomprobe(Path::new("/")).args(["--id", &id.to_string()]),
        b"",
    );
    assert!(output.status.success());
    assert_eq!(lines(&output)[0]["path"], path);
}

#[test]
fn a_reader_that_leaves_early_is_no_error() {
    let nowhere = tempfile::tempdir().unwrap();
    let mut child = oomprobe(nowhere.path())
        .arg("-")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut stdin = child.stdin.take().unwrap();
    // Until the other side is gone.
    while stdin.write_all(b"/docker\n").is_ok() {}
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert!(output.stderr.is_empty());
}
