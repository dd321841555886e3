//! The virtual machine itself: it is what the other tests take it for.

use std::fs;
use std::path::Path;
use std::time::Duration;

use stor_tests::vm::{self, Setup, Share, Vm};
use stor_tests::{leftovers, process, skip};

/// Runs `test` with a directory of its own, unless there can be no machine here.
fn with(name: &str, test: impl FnOnce(&Path) -> anyhow::Result<()>) -> anyhow::Result<()> {
    if let Some(missing) = vm::missing() {
        skip::skipped(name, &missing);
        return Ok(());
    }
    let root = leftovers::new_root()?;
    let done = test(&root);
    leftovers::remove(&root);
    done
}

#[test]
fn it_has_the_drivers_that_are_wanted_of_it() -> anyhow::Result<()> {
    with("it_has_the_drivers_that_are_wanted_of_it", |root| {
        let mut vm = Vm::start(&Setup {
            disks: vec![vm::disk(&root.join("disk"), 300 << 20)?],
            ..Setup::default()
        })?;
        assert_ne!(
            vm.run("uname -r")?,
            fs::read_to_string("/proc/sys/kernel/osrelease")?
        );
        vm.run("modprobe nbd && test -b /dev/nbd0")?;
        vm.run("modprobe fuse && modprobe loop && test -c /dev/fuse && test -c /dev/loop-control")?;
        vm.run("modprobe dm-thin-pool && test -c /dev/mapper/control")?;
        if Path::new("/usr/sbin/lvm").exists() && Path::new("/usr/sbin/thin_check").exists() {
            vm.run("vgcreate -q vg /dev/ubda && lvcreate -q -L 200M -T vg/pool && lvcreate -q -V 1G -T vg/pool -n thin")?;
            vm.run("mkfs.xfs -q /dev/vg/thin && mount /dev/vg/thin /srv && fstrim /srv && umount /srv")?;
        }
        let failed = vm.try_run("echo said; echo complained >&2; exit 7")?;
        assert_eq!(
            (failed.status, failed.stdout.as_str(), failed.stderr.as_str()),
            (7, "said\n", "complained\n")
        );
        vm.power_off()
    })
}

#[test]
fn disks_and_shares_stay_and_all_else_goes_with_the_power() -> anyhow::Result<()> {
    with("disks_and_shares_stay_and_all_else_goes_with_the_power", |root| {
        let share = root.join("share");
        fs::create_dir(&share)?;
        fs::write(share.join("in"), "from the host")?;
        let setup = Setup {
            disks: vec![vm::disk(&root.join("disk"), 64 << 20)?],
            shares: vec![Share {
                host: share.clone(),
                guest: "/srv/share".into(),
            }],
            ..Setup::default()
        };
        let mut vm = Vm::start(&setup)?;
        let name = format!("/etc/stor-test-{}", std::process::id());
        vm.run("mkfs.ext4 -q /dev/ubda && mount /dev/ubda /srv/tree 2>/dev/null || { mkdir /srv/tree; mount /dev/ubda /srv/tree; }")?;
        vm.run(&format!(
            "cp /srv/share/in /srv/share/out; echo 1 >{name}; echo kept >/srv/tree/kept; sync"
        ))?;
        vm.run("echo lost >/srv/tree/lost")?;
        vm.pull_the_plug();
        assert_eq!(fs::read_to_string(share.join("out"))?, "from the host");
        assert!(
            !Path::new(&name).exists(),
            "the guest has written to the host's own files"
        );
        let mut vm = Vm::start(&setup)?;
        vm.run("mkdir -p /srv/tree && mount /dev/ubda /srv/tree")?;
        assert_eq!(vm.run("cat /srv/tree/kept")?, "kept\n");
        assert_eq!(
            vm.run(&format!("ls /srv/tree/lost {name} 2>/dev/null || true"))?,
            ""
        );
        vm.power_off()
    })
}

#[test]
fn what_does_not_end_is_ended_and_nothing_is_left() -> anyhow::Result<()> {
    with("what_does_not_end_is_ended_and_nothing_is_left", |_| {
        let mut vm = Vm::start(&Setup::default())?;
        let error = vm
            .run_within(Duration::from_secs(2), "echo so far; sleep 1000")
            .unwrap_err();
        assert!(error.to_string().contains("so far"), "{error}");
        assert_eq!(vm.run("echo goes on")?, "goes on\n");
        let group = vm.pid();
        drop(vm);
        let left: Vec<_> = fs::read_dir("/proc")?
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
            .filter(|pid| process::group(*pid) == Some(group) && !process::is_gone(*pid))
            .collect();
        assert_eq!(left, Vec::<i32>::new(), "processes of the machine go on");
        Ok(())
    })
}
