//! Turns `data/instance-types.txt` into a sorted table of constants.

use std::error::Error;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::{env, fs};

const TABLE: &str = "data/instance-types.txt";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={TABLE}");
    println!("cargo::rerun-if-changed=build.rs");
    let text = fs::read_to_string(TABLE)?;
    let mut entries = Vec::new();
    for (number, line) in text.lines().enumerate() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let entry = entry(line).map_err(|error| format!("{TABLE}:{}: {error}: {line:?}", number + 1))?;
        entries.push(entry);
    }
    entries.sort();
    let mut code = String::from("&[\n");
    for (name, limits) in &entries {
        writeln!(code, "(\"{name}\", {limits}),")?;
    }
    code.push(']');
    fs::write(PathBuf::from(env::var("OUT_DIR")?).join("instance_types.rs"), code)?;
    Ok(())
}

/// A line's type and its limits as an expression.
fn entry(line: &str) -> Result<(&str, String), Box<dyn Error>> {
    let fields: Vec<&str> = line.split(' ').collect();
    let &[name, vcpus, ipv4_per_eni, default_card, hypervisor, metal, cards] = fields.as_slice() else {
        return Err(format!("{} fields: expected 7", fields.len()).into());
    };
    let cards = expand(cards)?;
    let enis = cards.get(default_card.parse::<usize>()?).ok_or("the default card does not exist")?;
    let hypervisor = match hypervisor {
        "nitro" => "Nitro",
        "xen" => "Xen",
        "unknown" => "Unknown",
        other => return Err(format!("hypervisor {other:?}: expected nitro, xen or unknown").into()),
    };
    let is_bare_metal = match metal {
        "metal" => true,
        "vm" => false,
        other => return Err(format!("{other:?}: expected metal or vm").into()),
    };
    let (vcpus, ipv4_per_eni): (u16, u16) = (vcpus.parse()?, ipv4_per_eni.parse()?);
    Ok((
        name,
        format!(
            "InstanceLimits {{ enis: {enis}, ipv4_per_eni: {ipv4_per_eni}, cards: Cow::Borrowed(&{cards:?}), \
             default_card: {default_card}, vcpus: {vcpus}, hypervisor: Hypervisor::{hypervisor}, \
             is_bare_metal: {is_bare_metal} }}"
        ),
    ))
}

/// `15x3,2` as `[15, 15, 15, 2]`.
fn expand(runs: &str) -> Result<Vec<u16>, Box<dyn Error>> {
    let mut cards = Vec::new();
    for run in runs.split(',') {
        let (enis, count) = run.split_once('x').unwrap_or((run, "1"));
        cards.extend(std::iter::repeat_n(enis.parse::<u16>()?, count.parse()?));
    }
    Ok(cards)
}
