//! Changing over from maps of another layout, and what an agent leaves that is killed meanwhile.

use std::path::{Path, PathBuf};

use aya::maps::{Array, Map, MapData};
use lb_common::abi::Forwarding::Dsr;
use lb_common::abi::LAYOUT_VERSION;
use lb_userspace::datapath::{Datapath, DatapathError, PinDirectory, Place, detach};
use lb_userspace::model::Protocol::Tcp;
use lb_userspace::model::XdpMode;
use lb_userspace::plan::Contents;

use crate::kernel::{Kernel, VIP4, kernel};

/// Words of `PARAMS`, of which the first is the layout.
type Words = [u32; 10];

fn params(folder: &Path) -> Array<MapData, Words> {
    let data = MapData::from_pin(folder.join("PARAMS")).unwrap();
    Map::Array(data).try_into().unwrap()
}

fn set_layout(folder: &Path, version: u32) {
    let mut params = params(folder);
    let mut words = params.get(&0, 0).unwrap();
    assert_eq!(words[0], LAYOUT_VERSION);
    words[0] = version;
    params.set(0, words, 0).unwrap();
}

fn folder(kernel: &Kernel, suffix: &str) -> PathBuf {
    let mut path = PinDirectory::of(&kernel.socket)
        .path()
        .as_os_str()
        .to_owned();
    path.push(suffix);
    path.into()
}

/// An old data plane with one service, and what it holds.
fn old(test: &str) -> Option<(Kernel, PinDirectory, Contents)> {
    let mut kernel = kernel(test)?;
    kernel.serve_one(VIP4, Tcp, Dsr, (1, "10.0.0.11:80"));
    set_layout(&folder(&kernel, ""), 1_000);
    let (pins, held) = (PinDirectory::of(&kernel.socket), kernel.contents.clone());
    Some((kernel, pins, held))
}

fn migrate(pins: &PinDirectory) -> Datapath {
    let datapath = Datapath::open_or_migrate(pins.clone(), 4096).unwrap();
    assert_eq!(datapath.migrates().unwrap(), Some(false));
    assert!(datapath.contents().unwrap().services.is_empty());
    datapath
}

/// No interface: then only the pins change.
fn nowhere() -> Place {
    Place {
        interfaces: Vec::new(),
        mode: XdpMode::Auto,
        replace: false,
        chain: None,
    }
}

#[test]
fn new_maps_take_the_place_of_the_old() {
    let Some((kernel, pins, _)) = old("new_maps_take_the_place_of_the_old") else {
        return;
    };
    let refused = Datapath::open(pins.clone(), 4096).err().unwrap();
    assert!(matches!(
        refused,
        DatapathError::Layout { found: 1_000, .. }
    ));
    let mut datapath = migrate(&pins);
    assert!(folder(&kernel, "-next").exists());
    assert_eq!(params(pins.path()).get(&0, 0).unwrap()[0], 1_000);
    datapath.attach(&nowhere()).unwrap();
    assert_eq!(datapath.migrates().unwrap(), None);
    for suffix in ["-next", "-last"] {
        assert!(!folder(&kernel, suffix).exists(), "{suffix}");
    }
    drop(datapath);
    let next = Datapath::open(pins, 4096).unwrap();
    assert_eq!(next.migrates().unwrap(), None);
    assert!(next.contents().unwrap().services.is_empty());
}

#[test]
fn a_change_over_that_does_not_come_about_leaves_nothing() {
    let name = "a_change_over_that_does_not_come_about_leaves_nothing";
    let Some((kernel, pins, held)) = old(name) else {
        return;
    };
    let mut datapath = migrate(&pins);
    let missing = Place {
        interfaces: vec!["no-such-if0".into()],
        ..nowhere()
    };
    datapath.attach(&missing).unwrap_err();
    drop(datapath);
    drop(migrate(&pins));
    assert!(!folder(&kernel, "-next").exists());
    set_back(&pins);
    let again = Datapath::open_or_migrate(pins, 4096).unwrap();
    assert_eq!(again.migrates().unwrap(), None);
    assert_eq!(again.contents().unwrap().services, held.services);
}

/// Makes the maps ours again.
fn set_back(pins: &PinDirectory) {
    let mut params = params(pins.path());
    let mut words = params.get(&0, 0).unwrap();
    words[0] = LAYOUT_VERSION;
    params.set(0, words, 0).unwrap();
}

#[test]
fn the_next_agent_ends_what_a_killed_one_began() {
    let Some((kernel, pins, _)) = old("the_next_agent_ends_what_a_killed_one_began") else {
        return;
    };
    let [next, last] = ["-next", "-last"].map(|suffix| folder(&kernel, suffix));
    // Killed while the new maps were filled.
    std::mem::forget(migrate(&pins));
    assert!(next.exists());
    drop(Datapath::open(pins.clone(), 4096).err().unwrap());
    assert!(!next.exists());
    // Killed when the old pins were out of the way, but the new ones not yet in their place. What
    // was new is told by what it does not hold.
    std::mem::forget(migrate(&pins));
    std::fs::rename(pins.path(), &last).unwrap();
    let datapath = Datapath::open(pins.clone(), 4096).unwrap();
    assert!(datapath.contents().unwrap().services.is_empty());
    assert!(!next.exists() && !last.exists());
    drop(datapath);
    // Killed before the old pins were removed.
    std::fs::create_dir(&last).unwrap();
    drop(Datapath::open(pins.clone(), 4096).unwrap());
    assert!(!last.exists());
    // And so does `lb detach`.
    std::fs::create_dir(&next).unwrap();
    std::fs::create_dir(&last).unwrap();
    assert!(detach(&pins).unwrap());
    assert!(!pins.exists() && !next.exists() && !last.exists());
}
