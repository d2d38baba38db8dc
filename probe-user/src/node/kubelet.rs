//! The kubelet's threshold for hard eviction on this node.
//!
//! A kubelet says by its arguments where its configuration is (`--config`, `--config-dir`), and may
//! have the threshold there (`--eviction-hard`, which comes before any file). K3s and MicroK8s run
//! the kubelet in a process of their own, and the host's procfs may be out of sight: then the places
//! that are known are tried.

use std::fs::{self, OpenOptions};
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::process::ProcessDir;

/// Arguments of MicroK8s' kubelet, one a line.
const MICROK8S_ARGUMENTS: &str = "var/snap/microk8s/current/args/kubelet";
/// Configuration of K3s' kubelet (`--config-dir`).
const K3S_DIRECTORY: &str = "var/lib/rancher/k3s/agent/etc/kubelet.conf.d";
/// Where kubeadm and most others put it.
const USUAL_FILE: &str = "var/lib/kubelet/config.yaml";

/// `memory.available` where nothing is configured
/// (pkg/kubelet/apis/config/v1beta1/defaults_linux.go).
const DEFAULT_BYTES: u64 = 100 << 20;

/// A configuration is a few KiB.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Below how much available memory the kubelet evicts pods without delay; `None` if it never does,
/// if there is no kubelet on this node, and if its configuration cannot be read.
pub fn eviction_threshold_bytes(host_root: &Path, total_bytes: u64) -> Option<u64> {
    let hard = match process(host_root) {
        Some(kubelet) => of_arguments(&kubelet.arguments, &[&kubelet.root, host_root])?,
        None => at_known_places(host_root)?,
    };
    hard.memory_bytes(total_bytes)
}

/// `evictionHard`, as far as memory goes.
#[derive(Debug, Default, PartialEq, Eq)]
struct Hard {
    /// It is there, maybe with other signals only. The kubelet then has no defaults for the rest.
    is_set: bool,
    /// But for this (`mergeDefaultEvictionSettings`).
    keeps_defaults: bool,
    /// Quantity of `memory.available`.
    memory: Option<String>,
}

impl Hard {
    /// With what a file says that is read later.
    fn and_then(self, later: Self) -> Self {
        Self {
            is_set: self.is_set || later.is_set,
            keeps_defaults: self.keeps_defaults || later.keeps_defaults,
            memory: later.memory.or(self.memory),
        }
    }

    fn memory_bytes(&self, total_bytes: u64) -> Option<u64> {
        match &self.memory {
            // A threshold of 0 is none.
            Some(quantity) => bytes(quantity, total_bytes).filter(|bytes| *bytes > 0),
            None => (!self.is_set || self.keeps_defaults).then_some(DEFAULT_BYTES),
        }
    }
}

/// A running kubelet.
struct Kubelet {
    arguments: Vec<String>,
    /// Its root directory: it may run in a container.
    root: PathBuf,
}

/// The kubelet of this node, not one of a node in a container (kind, minikube).
fn process(host_root: &Path) -> Option<Kubelet> {
    let proc = host_root.join("proc");
    let mut buf = Vec::new();
    let pids = fs::read_dir(&proc).ok()?.flatten();
    pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .find_map(|pid: u32| {
            let dir = ProcessDir::open(&proc, pid).ok()?;
            if dir.comm(&mut buf).ok()? != b"kubelet"
                || dir.status(&mut buf).ok()?.ns_pids.len() > 1
            {
                return None;
            }
            let arguments = dir.cmdline(&mut buf).ok()?.args;
            Some(Kubelet {
                arguments: arguments
                    .into_iter()
                    .filter_map(|argument| String::from_utf8(argument).ok())
                    .collect(),
                root: proc.join(pid.to_string()).join("root"),
            })
        })
}

fn at_known_places(host_root: &Path) -> Option<Hard> {
    directory(&host_root.join(K3S_DIRECTORY))
        .or_else(|| {
            let arguments: Vec<String> = read(&host_root.join(MICROK8S_ARGUMENTS))?
                .lines()
                .map(str::to_owned)
                .collect();
            of_arguments(&arguments, &[host_root])
        })
        .or_else(|| Some(of_config(&read(&host_root.join(USUAL_FILE))?)))
}

/// What the arguments of a kubelet say, or the files they name, below the first of `roots` that has
/// them. `None` if one cannot be read.
fn of_arguments(arguments: &[String], roots: &[&Path]) -> Option<Hard> {
    if let Some(thresholds) = flag(arguments, "--eviction-hard") {
        return Some(of_flag(thresholds));
    }
    let below = |root: &&Path, path: &str| root.join(path.trim_start_matches('/'));
    let mut hard = Hard::default();
    if let Some(path) = flag(arguments, "--config") {
        let text = roots.iter().find_map(|root| read(&below(root, path)))?;
        hard = of_config(&text);
    }
    if let Some(path) = flag(arguments, "--config-dir") {
        let later = roots
            .iter()
            .find_map(|root| directory(&below(root, path)))?;
        hard = hard.and_then(later);
    }
    Some(hard)
}

/// The last value of a flag, as `--name=value` or `--name value`.
fn flag<'a>(arguments: &'a [String], name: &str) -> Option<&'a str> {
    let (at, inline) =
        arguments
            .iter()
            .enumerate()
            .rev()
            .find_map(|(at, argument)| match argument.strip_prefix(name)? {
                "" => Some((at, None)),
                value => Some((at, Some(value.strip_prefix('=')?))),
            })?;
    let value = match inline {
        Some(value) => value,
        None => arguments.get(at + 1)?,
    };
    Some(unquoted(value))
}

/// `memory.available<100Mi,nodefs.available<10%`
fn of_flag(thresholds: &str) -> Hard {
    let mut entries = thresholds
        .split(',')
        .filter_map(|entry| entry.split_once('<'));
    Hard {
        is_set: true,
        keeps_defaults: false,
        memory: entries
            .find(|(signal, _)| signal.trim() == "memory.available")
            .map(|(_, quantity)| quantity.trim().to_owned()),
    }
}

/// The files of a `--config-dir`, in the kubelet's order; `None` if there is no such directory.
fn directory(path: &Path) -> Option<Hard> {
    let mut files: Vec<PathBuf> = fs::read_dir(path)
        .ok()?
        .flatten()
        .map(|entry| entry.path())
        .filter(|file| {
            file.extension()
                .is_some_and(|extension| extension == "conf")
        })
        .collect();
    files.sort();
    let texts = files.iter().filter_map(|file| read(file));
    Some(texts.fold(Hard::default(), |hard, text| {
        hard.and_then(of_config(&text))
    }))
}

/// Reads a regular file of bounded size; a pipe in its place does not hold up anybody.
fn read(path: &Path) -> Option<String> {
    let mut options = OpenOptions::new();
    let file = options
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut text = String::new();
    file.take(MAX_FILE_BYTES).read_to_string(&mut text).ok()?;
    Some(text)
}

/// Two keys of a `KubeletConfiguration`, in JSON or YAML. Of YAML this takes block and flow style
/// with comments and quotes, which is all that kubelets' configurations are written in; no anchors,
/// tags or multi-line strings.
fn of_config(text: &str) -> Hard {
    if text.trim_start().starts_with('{') {
        return of_json(text);
    }
    let lines = || text.lines().map(without_comment);
    let keeps_defaults = lines()
        .filter_map(|line| top_level(line, "mergeDefaultEvictionSettings"))
        .any(|value| value == "true");
    let mut rest = lines().skip_while(|line| top_level(line, "evictionHard").is_none());
    let Some(first) = rest.next().and_then(|line| top_level(line, "evictionHard")) else {
        return Hard {
            keeps_defaults,
            ..Hard::default()
        };
    };
    let block = rest.take_while(|line| line.is_empty() || line.starts_with([' ', '\t', '}']));
    let mut entries = std::iter::once(first)
        .chain(block)
        .flat_map(|line| line.split(['{', ',', '}']))
        .filter_map(|entry| entry.split_once(':'))
        .peekable();
    Hard {
        is_set: first.starts_with('{') || entries.peek().is_some(),
        keeps_defaults,
        memory: entries
            .find(|(key, _)| unquoted(key) == "memory.available")
            .map(|(_, value)| unquoted(value).to_owned()),
    }
}

fn of_json(text: &str) -> Hard {
    let config: serde_json::Value = serde_json::from_str(text).unwrap_or_default();
    let hard = config["evictionHard"].as_object();
    Hard {
        is_set: hard.is_some(),
        keeps_defaults: config["mergeDefaultEvictionSettings"] == true,
        memory: hard
            .and_then(|hard| hard.get("memory.available")?.as_str())
            .map(str::to_owned),
    }
}

fn without_comment(line: &str) -> &str {
    let comment = line
        .match_indices('#')
        .find(|&(at, _)| at == 0 || line[..at].ends_with([' ', '\t']));
    comment.map_or(line, |(at, _)| &line[..at]).trim_end()
}

/// The value, if the line is the key at the top of the document.
fn top_level<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    let (name, value) = line.split_once(':')?;
    (!name.starts_with([' ', '\t']) && unquoted(name) == key).then(|| value.trim())
}

fn unquoted(text: &str) -> &str {
    text.trim().trim_matches(['"', '\''])
}

/// A quantity of Kubernetes (`100Mi`, `1.5G`, `104857600`) or a share of all memory (`5%`).
fn bytes(quantity: &str, total_bytes: u64) -> Option<u64> {
    let at = quantity
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(quantity.len());
    let (number, unit) = quantity.split_at(at);
    let number: f64 = number.parse().ok()?;
    #[expect(clippy::cast_precision_loss, reason = "a share, rounded to bytes")]
    let total = total_bytes as f64;
    let unit = match unit {
        "%" if number <= 100.0 => total / 100.0,
        "" => 1.0,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "Ki" => 1024.0,
        "Mi" => 1024.0 * 1024.0,
        "Gi" => 1024.0 * 1024.0 * 1024.0,
        "Ti" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    };
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "not negative, and saturating"
    )]
    let bytes = (number * unit).round() as u64;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TOTAL: u64 = 8 << 30;
    const DEFAULT: Option<u64> = Some(DEFAULT_BYTES);

    /// Paths and contents.
    type Files = &'static [(&'static str, &'static str)];

    /// A host with these files.
    fn host(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        root
    }

    fn threshold(files: &[(&str, &str)]) -> Option<u64> {
        eviction_threshold_bytes(host(files).path(), TOTAL)
    }

    #[test]
    fn a_node_without_kubelet_has_no_threshold() {
        assert_eq!(threshold(&[]), None);
    }

    #[test]
    fn configurations() {
        let rows = [
            // As kubeadm writes it.
            (
                "apiVersion: kubelet.config.k8s.io/v1beta1\nevictionPressureTransitionPeriod: 0s\n",
                DEFAULT,
            ),
            ("evictionHard:\nevictionSoft: null\n", DEFAULT),
            ("evictionHard: null\n", DEFAULT),
            (
                "evictionHard:\n  imagefs.available: 15%\n  memory.available: 200Mi\nfoo: 1\n",
                Some(200 << 20),
            ),
            (
                "evictionHard:\r\n\r\n    # memory.available: 1Gi\r\n    \"memory.available\": \"25%\" # a share\r\n",
                Some(2 << 30),
            ),
            (
                "evictionHard: {nodefs.available: \"1%\", memory.available: 1G}\n",
                Some(1_000_000_000),
            ),
            (
                "evictionHard: {\n  'memory.available': '1.5Gi'\n}\nx: {memory.available: 1}\n",
                Some(3 << 29),
            ),
            // Any signal that is set takes the defaults from the rest.
            (
                "evictionSoft:\n  memory.available: 1Gi\nevictionHard:\n  pid.available: 5%\nx:\n  memory.available: 2Gi\n",
                None,
            ),
            ("evictionHard: {}\n", None),
            (
                "evictionHard:\n  pid.available: 5%\nmergeDefaultEvictionSettings: true\n",
                DEFAULT,
            ),
            // Off.
            ("evictionHard:\n  memory.available: \"0\"\n", None),
            ("evictionHard:\n  memory.available: 0%\n", None),
            ("evictionHard:\n  memory.available: lots\n", None),
            ("evictionHard:\n  memory.available: 200%\n", None),
            ("evictionHard:\n  memory.available: -1Gi\n", None),
            // EKS and AKS have JSON.
            (
                r#"{"kind":"KubeletConfiguration","evictionHard":{"memory.available":"100Mi","nodefs.available":"10%"}}"#,
                DEFAULT,
            ),
            (
                r#"{"evictionHard":{"memory.available":"750Mi"}}"#,
                Some(750 << 20),
            ),
            (r#"{"evictionHard":{"nodefs.available":"10%"}}"#, None),
            (r#"{"kind":"KubeletConfiguration"}"#, DEFAULT),
        ];
        for (config, expected) in rows {
            assert_eq!(threshold(&[(USUAL_FILE, config)]), expected, "{config}");
        }
    }

    #[test]
    fn a_running_kubelet_says_where_to_look() {
        const STATUS: &str = "Name:\tkubelet\nTgid:\t70\nUid:\t0\t0\t0\t0\nNSpid:\t70\n";
        let rows: [(&str, Files, Option<u64>); 9] = [
            ("kubelet", &[], DEFAULT),
            (
                "kubelet\0--eviction-hard=nodefs.available<10%,memory.available<300Mi\0",
                &[],
                Some(300 << 20),
            ),
            (
                "kubelet\0--eviction-hard\0nodefs.available<10%\0",
                &[],
                None,
            ),
            ("kubelet\0--eviction-hard=\0", &[], None),
            // The flag comes before the file.
            (
                "kubelet\0--config=/etc/k.json\0--eviction-hard\0memory.available<1%",
                &[(
                    "etc/k.json",
                    r#"{"evictionHard":{"memory.available":"1Gi"}}"#,
                )],
                Some(85_899_346),
            ),
            (
                "kubelet\0--config\0/etc/k.json\0",
                &[(
                    "etc/k.json",
                    r#"{"evictionHard":{"memory.available":"1Gi"}}"#,
                )],
                Some(1 << 30),
            ),
            ("kubelet\0--config=/etc/none\0", &[], None),
            // RKE2; of two files the later has the last word on what it says.
            (
                "kubelet\0--config-dir=/conf.d\0",
                &[
                    (
                        "conf.d/50-own.conf",
                        "evictionHard:\n  memory.available: 2Gi\n",
                    ),
                    (
                        "conf.d/00-rke2-defaults.conf",
                        "evictionHard:\n  memory.available: 1Gi\n  nodefs.available: 5%\n",
                    ),
                    ("conf.d/60.yaml", "evictionHard:\n  memory.available: 3Gi\n"),
                ],
                Some(2 << 30),
            ),
            (
                "kubelet\0--config-dir=/conf.d\0",
                &[(
                    "conf.d/00-rke2-defaults.conf",
                    "evictionHard:\n  imagefs.available: 5%\n  nodefs.available: 5%\n",
                )],
                None,
            ),
        ];
        for (cmdline, files, expected) in rows {
            let root = host(files);
            let process = |file: &str, content: &str| {
                let dir = root.path().join("proc/70");
                fs::create_dir_all(&dir).unwrap();
                fs::write(dir.join(file), content).unwrap();
            };
            process("comm", "kubelet\n");
            process("status", STATUS);
            process("cmdline", cmdline);
            let found = eviction_threshold_bytes(root.path(), TOTAL);
            assert_eq!(found, expected, "{cmdline:?}");
            // A kubelet of another node, in a container.
            process("status", &STATUS.replace("NSpid:\t70", "NSpid:\t70\t5"));
            let found = eviction_threshold_bytes(root.path(), TOTAL);
            assert_eq!(found, None, "{cmdline:?} in a container");
        }
    }

    #[test]
    fn kubelets_inside_other_processes() {
        let microk8s = "--root-dir=${SNAP_COMMON}/var/lib/kubelet\n--eviction-hard=\"memory.available<200Mi,nodefs.available<1Gi\"\n";
        assert_eq!(
            threshold(&[(MICROK8S_ARGUMENTS, microk8s)]),
            Some(200 << 20)
        );
        let k3s = "evictionHard:\n  imagefs.available: 5%\n  nodefs.available: 5%\n";
        let defaults = format!("{K3S_DIRECTORY}/00-k3s-defaults.conf");
        assert_eq!(threshold(&[(&defaults, k3s)]), None);
        let own = format!("{K3S_DIRECTORY}/99-own.conf");
        let more = "evictionHard:\n  memory.available: 512Mi\n";
        assert_eq!(
            threshold(&[(&defaults, k3s), (&own, more)]),
            Some(512 << 20)
        );
    }

    #[test]
    fn a_pipe_is_no_configuration() {
        let root = host(&[("var/lib/kubelet/x", "")]);
        let pipe = root.path().join(USUAL_FILE);
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        assert_eq!(eviction_threshold_bytes(root.path(), TOTAL), None);
    }

    proptest! {
        #[test]
        fn any_text_is_taken(text in "\\PC*", lines in "([ a-z\"'#:{},\t\n]|evictionHard|memory.available|1Gi){0,40}") {
            for text in [text, lines] {
                let _ = of_config(&text).memory_bytes(TOTAL);
                let _ = of_flag(&text).memory_bytes(TOTAL);
                let _ = bytes(&text, TOTAL);
            }
        }
    }
}
