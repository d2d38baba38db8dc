//! Picks the kernel modules tests need, with what they depend on, out of a kernel package.
//!
//! The result is a directory `modprobe` understands, so that a guest's kernel loads modules by
//! itself (a zram device, an overlay mount, a qdisc) as it does on a node.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use object::{Object, ObjectSection};

/// A module's own description, its ELF section `.modinfo`.
#[derive(Debug, Default, PartialEq, Eq)]
struct ModInfo {
    aliases: Vec<String>,
    depends: Vec<String>,
}

/// Copies from `tree` (a package's `lib/modules/<release>`) into `to` the modules that match
/// `wanted`, uncompressed, with their dependencies, `modules.dep` and `modules.alias`.
pub(super) fn collect(tree: &Path, wanted: &[String], to: &Path) -> Result<()> {
    let mut available = BTreeMap::new();
    find_modules(tree, &mut available)?;
    fs::create_dir_all(to).with_context(|| format!("create {}", to.display()))?;

    let mut queue: Vec<String> = available
        .keys()
        .filter(|name| wanted.iter().any(|pattern| matches(pattern, name)))
        .cloned()
        .collect();
    let mut kept: BTreeMap<String, ModInfo> = BTreeMap::new();
    while let Some(name) = queue.pop() {
        if kept.contains_key(&name) {
            continue;
        }
        let path = available
            .get(&name)
            .with_context(|| format!("{} lacks module {name}", tree.display()))?;
        let elf = uncompressed(path)?;
        let info = mod_info(&elf).with_context(|| format!("read {}", path.display()))?;
        fs::write(to.join(format!("{name}.ko")), elf)
            .with_context(|| format!("keep module {name}"))?;
        queue.extend(info.depends.iter().cloned());
        kept.insert(name, info);
    }
    let (dep, alias) = indexes(&kept);
    fs::write(to.join("modules.dep"), dep).context("write modules.dep")?;
    fs::write(to.join("modules.alias"), alias).context("write modules.alias")
}

/// `modules.dep` and `modules.alias`, see modules.dep(5).
fn indexes(kept: &BTreeMap<String, ModInfo>) -> (String, String) {
    let (mut dep, mut alias) = (String::new(), String::new());
    for (name, info) in kept {
        let mut needed = Vec::new();
        load_order(name, kept, &mut needed);
        // modprobe loads the list from its end.
        let needed = needed
            .iter()
            .rev()
            .skip(1)
            .fold(String::new(), |list, name| list + " " + name + ".ko");
        // Writing to a String cannot fail.
        let _ = writeln!(dep, "{name}.ko:{needed}");
        for pattern in &info.aliases {
            let _ = writeln!(alias, "alias {pattern} {name}");
        }
    }
    (dep, alias)
}

/// Appends what `name` needs, in the order it must be loaded, and `name` itself.
fn load_order<'a>(name: &'a str, kept: &'a BTreeMap<String, ModInfo>, order: &mut Vec<&'a str>) {
    if order.contains(&name) {
        return;
    }
    if let Some(info) = kept.get(name) {
        for needed in &info.depends {
            load_order(needed, kept, order);
        }
    }
    order.push(name);
}

/// Maps each module's name to its file.
fn find_modules(dir: &Path, found: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    let entries = fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))?;
    for entry in entries {
        let path = entry
            .with_context(|| format!("read {}", dir.display()))?
            .path();
        if path.is_symlink() {
            continue;
        }
        if path.is_dir() {
            find_modules(&path, found)?;
        } else if let Some(name) = path
            .file_name()
            .and_then(|n| n.to_str())
            .and_then(module_name)
        {
            found.insert(name, path);
        }
    }
    Ok(())
}

/// The name the kernel gives the module in `file`; `None` if that is no module.
fn module_name(file: &str) -> Option<String> {
    let (name, compression) = file.split_once(".ko")?;
    matches!(compression, "" | ".xz" | ".zst" | ".gz").then(|| name.replace('-', "_"))
}

fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == pattern,
    }
}

fn uncompressed(path: &Path) -> Result<Vec<u8>> {
    let tool = match path.extension().and_then(|ext| ext.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return fs::read(path).with_context(|| format!("read {}", path.display())),
    };
    let output = Command::new(tool)
        .arg("-dc")
        .arg(path)
        .output()
        .with_context(|| format!("run {tool}"))?;
    ensure!(
        output.status.success(),
        "{tool} -dc {}: {}",
        path.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output.stdout)
}

fn mod_info(elf: &[u8]) -> Result<ModInfo> {
    let file = object::File::parse(elf)?;
    let section = file
        .section_by_name(".modinfo")
        .context("no .modinfo section")?;
    Ok(parse_mod_info(section.data()?))
}

fn parse_mod_info(section: &[u8]) -> ModInfo {
    let mut info = ModInfo::default();
    let mut depends = BTreeSet::new();
    for entry in section
        .split(|byte| *byte == 0)
        .filter_map(|e| std::str::from_utf8(e).ok())
    {
        if let Some(alias) = entry.strip_prefix("alias=") {
            info.aliases.push(alias.to_owned());
        } else if let Some(list) = entry.strip_prefix("depends=") {
            let names = list.split(',').filter(|name| !name.is_empty());
            depends.extend(names.map(|name| name.replace('-', "_")));
        }
    }
    info.depends = depends.into_iter().collect();
    info
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_known_by_the_kernels_name() {
        assert_eq!(module_name("lzo-rle.ko.xz").as_deref(), Some("lzo_rle"));
        assert_eq!(module_name("zram.ko").as_deref(), Some("zram"));
        assert_eq!(module_name("modules.dep"), None);
        assert_eq!(module_name("x.koala"), None);
    }

    #[test]
    fn patterns_match_whole_names_or_a_start() {
        assert!(matches("sch_*", "sch_netem"));
        assert!(!matches("sch_*", "act_sch_x"));
        assert!(matches("tun", "tun"));
        assert!(!matches("tun", "tunnel4"));
    }

    #[test]
    fn modinfo_gives_aliases_and_dependencies() {
        let info =
            parse_mod_info(b"license=GPL\0alias=crypto-x\0alias=x-*\0\0depends=b-a,c\0depends=\0");
        assert_eq!(info.aliases, ["crypto-x", "x-*"]);
        assert_eq!(info.depends, ["b_a", "c"]);
    }

    #[test]
    fn dependencies_are_listed_so_that_loading_from_the_end_works() {
        let module = |depends: &[&str]| ModInfo {
            aliases: vec!["net-x".to_owned()],
            depends: depends.iter().map(|&d| d.to_owned()).collect(),
        };
        let kept = BTreeMap::from([
            ("a".to_owned(), module(&["b", "c"])),
            ("b".to_owned(), module(&["c"])),
            ("c".to_owned(), module(&[])),
        ]);
        let (dep, alias) = indexes(&kept);
        assert_eq!(dep, "a.ko: b.ko c.ko\nb.ko: c.ko\nc.ko:\n");
        assert_eq!(alias, "alias net-x a\nalias net-x b\nalias net-x c\n");
    }
}
