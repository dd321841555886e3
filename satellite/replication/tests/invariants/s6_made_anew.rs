//= docs/replication.md#S6
//! A copy made anew is equal to the one it is made of, whatever was there before, and counts when it is durable.

use stor_replication::range::ByteRange;
use stor_replication::recopy::{Digest, Recopy, Source, Target, Trouble, UNIT};

const SIZE: u64 = 10 * UNIT + 4096;

/// A copy: a number for each block.
#[derive(Clone, Default)]
struct Copy {
    blocks: Vec<u8>,
    /// What was done, in order.
    done: Vec<&'static str>,
    written: Vec<u8>,
    failing: Option<&'static str>,
}

fn copy(blocks: [u8; 11]) -> Copy {
    Copy {
        blocks: blocks.to_vec(),
        ..Copy::default()
    }
}

impl Copy {
    fn at(range: ByteRange) -> std::ops::Range<usize> {
        let units = range.units(UNIT);
        usize::try_from(units.start).unwrap()..usize::try_from(units.end).unwrap()
    }

    fn does(&mut self, what: &'static str) -> Result<(), &'static str> {
        if self.failing == Some(what) {
            self.failing = None;
            return Err(what);
        }
        self.done.push(what);
        Ok(())
    }

    fn tell(&self, range: ByteRange) -> Vec<Digest> {
        let of = |block: &u8| match *block {
            0 => Digest::Zero,
            number => Digest::Of([number; 32]),
        };
        self.blocks[Self::at(range)].iter().map(of).collect()
    }
}

impl Source for Copy {
    type Data = Vec<u8>;
    type Error = &'static str;

    fn digests(&mut self, range: ByteRange) -> Result<Vec<Digest>, &'static str> {
        self.does("digests")?;
        Ok(self.tell(range))
    }

    fn read(&mut self, range: ByteRange) -> Result<Vec<u8>, &'static str> {
        self.does("read")?;
        assert!(range.end() <= SIZE);
        Ok(self.blocks[Self::at(range)].to_vec())
    }
}

impl Target<Vec<u8>> for Copy {
    type Error = &'static str;

    fn digests(&mut self, range: ByteRange) -> Result<Vec<Digest>, &'static str> {
        Ok(self.tell(range))
    }

    fn write(&mut self, range: ByteRange, data: Vec<u8>) -> Result<(), &'static str> {
        self.does("write")?;
        self.written.extend(&data);
        self.blocks[Self::at(range)].copy_from_slice(&data);
        Ok(())
    }

    fn free(&mut self, range: ByteRange) -> Result<(), &'static str> {
        self.does("free")?;
        self.blocks[Self::at(range)].fill(0);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), &'static str> {
        self.does("flush")
    }

    fn name(&mut self) -> Result<(), &'static str> {
        self.does("name")
    }
}

fn whole(source: &mut Copy, target: &mut Copy) -> (Recopy, u32) {
    let (mut recopy, mut failed) = (Recopy::new(SIZE, 3 * UNIT), 0);
    while !recopy.is_done() {
        failed += u32::from(recopy.step(source, target).is_err());
        assert!(failed < 10);
    }
    (recopy, failed)
}

const WANTED: [u8; 11] = [1, 0, 3, 4, 0, 0, 7, 8, 9, 0, 11];

#[test]
fn whatever_was_there_it_is_equal_in_the_end() {
    for before in [[0; 11], [5; 11], WANTED, [1, 2, 3, 0, 0, 6, 7, 9, 9, 9, 12]] {
        let (mut source, mut target) = (copy(WANTED), copy(before));
        let (recopy, failed) = whole(&mut source, &mut target);
        assert_eq!((&target.blocks, failed), (&source.blocks, 0));
        let differed = before.iter().zip(&WANTED).filter(|(a, b)| a != b).count() as u64;
        let last = u64::from(before[10] != WANTED[10]) * (UNIT - 4096);
        assert_eq!(recopy.copied(), differed * UNIT - last, "no more than differed");
        assert_eq!(recopy.compared(), SIZE);
    }
}

#[test]
fn what_is_equal_or_zero_does_not_travel() {
    let (mut source, mut target) = (copy(WANTED), copy([1, 2, 3, 0, 0, 6, 7, 9, 9, 9, 12]));
    whole(&mut source, &mut target);
    assert_eq!(target.written, [4, 8, 11]);
}

#[test]
fn it_counts_only_when_it_is_durable() {
    let (mut source, mut target) = (copy(WANTED), copy([0; 11]));
    target.failing = Some("flush");
    let (_, failed) = whole(&mut source, &mut target);
    assert_eq!(failed, 1);
    let ends: Vec<_> = target.done.iter().rev().take(2).collect();
    assert_eq!(ends, [&"name", &"flush"]);
    assert_eq!(target.done.iter().filter(|what| **what == "name").count(), 1);
}

#[test]
fn a_step_that_failed_is_done_again() {
    for failing in ["write", "free", "name"] {
        let (mut source, mut target) = (copy(WANTED), copy([5; 11]));
        target.failing = Some(failing);
        let (_, failed) = whole(&mut source, &mut target);
        assert_eq!((&target.blocks, failed), (&source.blocks, 1), "{failing}");
    }
    for failing in ["digests", "read"] {
        let (mut source, mut target) = (copy(WANTED), copy([5; 11]));
        source.failing = Some(failing);
        let (_, failed) = whole(&mut source, &mut target);
        assert_eq!((&target.blocks, failed), (&source.blocks, 1), "{failing}");
    }
}

#[test]
fn too_few_digests_are_no_answer() {
    struct Short(Copy);
    impl Source for Short {
        type Data = Vec<u8>;
        type Error = &'static str;
        fn digests(&mut self, range: ByteRange) -> Result<Vec<Digest>, &'static str> {
            let mut all = self.0.tell(range);
            all.pop();
            Ok(all)
        }
        fn read(&mut self, range: ByteRange) -> Result<Vec<u8>, &'static str> {
            self.0.read(range)
        }
    }
    let mut recopy = Recopy::new(SIZE, 3 * UNIT);
    let told = recopy.step(&mut Short(copy(WANTED)), &mut copy([0; 11]));
    assert_eq!(told, Err(Trouble::Digests { found: 2, blocks: 3 }));
    assert_eq!(recopy.compared(), 0);
}
