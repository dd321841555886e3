use super::*;

fn dir() -> tempfile::TempDir {
    tempfile::tempdir_in("/var/tmp").unwrap()
}

#[test]
fn a_created_file_is_sparse_and_opens_again() {
    let dir = dir();
    let path = dir.path().join("data");
    let made = open_data(&path, OpenData::Create { size: 1 << 30 }).unwrap();
    assert_eq!((made.size, made.block_size.is_power_of_two()), (1 << 30, true));
    assert!((512..=4096).contains(&made.block_size), "{}", made.block_size);
    assert_eq!(allocated_bytes(&made.fd).unwrap(), 0);
    let again = open_data(&path, OpenData::Existing).unwrap();
    rustix::io::pwrite(&again.fd, &Buf::new(8192), 4096).unwrap();
    assert!(allocated_bytes(&made.fd).unwrap() >= 8192);
    assert_eq!(
        allocated_bytes(&made.fd).unwrap(),
        allocated_bytes_of(&path).unwrap()
    );
    let read_only = open_data(&path, OpenData::ReadOnly).unwrap();
    assert_eq!(
        rustix::io::pwrite(&read_only.fd, &Buf::new(4096), 0),
        Err(Errno::BADF)
    );
    fsync_dir(dir.path()).unwrap();
}

#[test]
fn an_existing_file_is_never_made_again_nor_a_missing_one_opened() {
    let dir = dir();
    let path = dir.path().join("data");
    let missing = open_data(&path, OpenData::Existing).unwrap_err();
    assert!(
        matches!(&missing, OpenDataError::Open { source, .. } if source.kind() == io::ErrorKind::NotFound)
    );
    fs::write(&path, "precious").unwrap();
    let there = open_data(&path, OpenData::Create { size: 4096 }).unwrap_err();
    assert!(
        matches!(&there, OpenDataError::Open { source, .. } if source.kind() == io::ErrorKind::AlreadyExists)
    );
    assert_eq!(fs::read(&path).unwrap(), b"precious");
}

#[test]
fn a_file_that_cannot_have_its_size_is_removed_again() {
    let dir = dir();
    let path = dir.path().join("data");
    let error = open_data(&path, OpenData::Create { size: u64::MAX >> 1 }).unwrap_err();
    assert!(matches!(error, OpenDataError::SetSize { .. }), "{error}");
    assert!(!path.exists());
}

#[test]
fn no_direct_io_is_said_so() {
    // proc has none on any kernel.
    let error = open_data(Path::new("/proc/self/status"), OpenData::ReadOnly).unwrap_err();
    assert!(matches!(error, OpenDataError::NoDirectIo { .. }), "{error}");
    assert!(error.to_string().contains("/proc/self/status"), "{error}");
}

#[test]
fn space_adds_up() {
    let space = space(Path::new("/var/tmp")).unwrap();
    assert!(
        space.available <= space.free && space.free <= space.total && space.total > 0,
        "{space:?}"
    );
}

#[test]
fn probes_answer_and_leave_nothing_behind() {
    let dir = dir();
    let reflink = supports_reflink(dir.path()).unwrap();
    let punch = supports_punch_hole(dir.path()).unwrap();
    let kind = rustix::fs::statfs(dir.path()).unwrap().f_type;
    if kind == 0xEF53 {
        assert_eq!(
            (reflink, punch),
            (false, true),
            "ext4 punches holes and has no reflinks"
        );
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    assert!(supports_reflink(&dir.path().join("missing")).is_err());
}
