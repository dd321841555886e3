//! What a right opens, and what it does not.

use std::time::Duration;

use proptest::prelude::*;
use stor_replication::ids::{Epoch, VolumeId};
use stor_replication::right::RightRefusal;
use uuid::Uuid;

use super::*;

const VOLUME: VolumeId = VolumeId(Uuid::from_u128(7));
const ISSUED: Seconds = Seconds(1_700_000_000);
const LIFE: Duration = Duration::from_mins(10);

fn signer() -> Signer {
    Signer::generate().unwrap().0
}

fn ring_of(signers: &[&Signer]) -> Keyring {
    let trusted = |signer: &&Signer| TrustedKey {
        key: signer.public(),
        retired: false,
    };
    Keyring::new(signers.iter().map(trusted).collect())
}

fn statement() -> Statement {
    Statement {
        volume: VOLUME,
        epoch: Epoch(5),
        node: "k1".into(),
        read_only: true,
        issued: ISSUED,
        expires: ISSUED.after(LIFE),
    }
}

fn asked(epoch: u64, fenced: u64) -> Asked {
    Asked {
        volume: VOLUME,
        epoch: Epoch(epoch),
        fenced: Epoch(fenced),
    }
}

fn refusal(keys: &Keyring, right: &SignedRight, asked: Asked, now: Seconds) -> Option<RightRefusal> {
    keys.verify(right.bytes(), asked, now).err()
}

#[test]
fn a_right_opens_its_volume_under_its_epoch() {
    let signer = signer();
    let right = signer.sign(&statement());
    let granted = ring_of(&[&signer])
        .verify(right.bytes(), asked(5, 4), ISSUED)
        .unwrap();
    assert_eq!(granted.statement, statement());
    #[expect(clippy::disallowed_methods, reason = "to compare with")]
    let expected = stor_replication::right::Authorised::checked(VOLUME, Epoch(5));
    assert_eq!(granted.authorised, expected);
    assert_eq!(
        right,
        signer.sign(&statement()),
        "the same statement gives the same bytes"
    );
}

#[test]
fn nothing_else() {
    let (signer, stranger) = (signer(), signer());
    let keys = ring_of(&[&signer]);
    let right = signer.sign(&statement());
    let see = |right: &SignedRight, asked| refusal(&keys, right, asked, ISSUED);
    assert_eq!(see(&right, asked(6, 4)), Some(RightRefusal::OtherEpoch));
    assert_eq!(see(&right, asked(u64::MAX, 4)), Some(RightRefusal::OtherEpoch));
    let other = Asked {
        volume: VolumeId(Uuid::from_u128(8)),
        ..asked(5, 4)
    };
    assert_eq!(see(&right, other), Some(RightRefusal::OtherVolume));
    assert_eq!(
        see(&SignedRight::default(), asked(5, 4)),
        Some(RightRefusal::Absent)
    );
    let foreign = stranger.sign(&statement());
    assert_eq!(see(&foreign, asked(5, 4)), Some(RightRefusal::UnknownKey));
    // Under the name of a key that is trusted.
    let mut posed = foreign.bytes().to_vec();
    posed[8..16].copy_from_slice(&right.bytes()[8..16]);
    assert_eq!(
        see(&SignedRight::new(posed), asked(5, 4)),
        Some(RightRefusal::Forged)
    );
    assert_eq!(
        refusal(&Keyring::default(), &right, asked(5, 4), ISSUED),
        Some(RightRefusal::UnknownKey)
    );
}

#[test]
fn time_counts_above_the_fence_only() {
    let signer = signer();
    let keys = ring_of(&[&signer]);
    let right = signer.sign(&statement());
    let end = ISSUED.after(LIFE).after(SKEW);
    let begin = Seconds(ISSUED.0 - SKEW.as_secs());
    let see = |fenced, now| refusal(&keys, &right, asked(5, fenced), now);
    assert_eq!(see(4, end), None);
    assert_eq!(see(4, Seconds(end.0 + 1)), Some(RightRefusal::Expired));
    assert_eq!(see(4, begin), None);
    assert_eq!(see(4, Seconds(begin.0 - 1)), Some(RightRefusal::NotYetValid));
    for now in [Seconds(0), Seconds(end.0 + 1), Seconds(u64::MAX)] {
        assert_eq!(see(5, now), None, "the epoch it was opened for before");
        assert_eq!(see(6, now), None, "an older one is the core's to refuse");
    }
}

#[test]
fn a_retired_key_opens_no_new_epoch_and_keeps_the_present_one() {
    let signer = signer();
    let keys = Keyring::new(vec![TrustedKey {
        key: signer.public(),
        retired: true,
    }]);
    let right = signer.sign(&statement());
    assert_eq!(
        refusal(&keys, &right, asked(5, 4), ISSUED),
        Some(RightRefusal::RetiredKey)
    );
    assert_eq!(refusal(&keys, &right, asked(5, 5), ISSUED), None);
}

#[test]
fn every_byte_counts() {
    let signer = signer();
    let keys = ring_of(&[&signer]);
    let right = signer.sign(&statement());
    // As a replica sees it that was opened for this epoch before: nothing but the signature is left to fail.
    let lax = asked(5, 5);
    assert_eq!(refusal(&keys, &right, lax, ISSUED), None);
    for at in 0..right.bytes().len() {
        for bit in 0..8 {
            let mut bytes = right.bytes().to_vec();
            bytes[at] ^= 1 << bit;
            let seen = refusal(&keys, &SignedRight::new(bytes), lax, ISSUED);
            assert!(seen.is_some(), "byte {at} bit {bit}");
        }
    }
    let whole = right.bytes();
    for cut in 1..whole.len() {
        let seen = refusal(&keys, &SignedRight::new(whole[..cut].to_vec()), lax, ISSUED);
        assert!(seen.is_some(), "{cut} bytes");
    }
    let longer = [whole, &[0]].concat();
    assert_eq!(
        refusal(&keys, &SignedRight::new(longer), lax, ISSUED),
        Some(RightRefusal::Malformed)
    );
}

#[test]
fn a_later_version_is_told_apart() {
    let signer = signer();
    let mut bytes = signer.sign(&statement()).bytes().to_vec();
    bytes[4] = 2;
    let seen = refusal(
        &ring_of(&[&signer]),
        &SignedRight::new(bytes),
        asked(5, 4),
        ISSUED,
    );
    assert_eq!(seen, Some(RightRefusal::Newer));
}

/// The format of version 1, byte by byte, from a fixed key: every later version must make and read these.
#[test]
fn the_format_stays() {
    let secret = include_bytes!("fixtures/key-1.p8");
    let signer = Signer::from_pkcs8(secret).unwrap();
    let right = signer.sign(&statement());
    assert_eq!(right.bytes(), include_bytes!("fixtures/right-1.bin"));
    assert_eq!(refusal(&ring_of(&[&signer]), &right, asked(5, 4), ISSUED), None);
}

#[test]
fn a_key_is_read_back_and_a_damaged_one_is_not() {
    let (signer, secret) = Signer::generate().unwrap();
    let again = Signer::from_pkcs8(&secret).unwrap();
    assert_eq!(again.public(), signer.public());
    for at in 0..secret.len() {
        let mut bytes = secret.clone();
        bytes[at] ^= 1;
        // A byte that only says how the halves are written may be another one; the key never.
        if let Ok(read) = Signer::from_pkcs8(&bytes) {
            assert_eq!(read.public(), signer.public(), "byte {at}");
        }
    }
    assert_eq!(Signer::from_pkcs8(&[]).unwrap_err(), KeyError::Damaged);
}

#[test]
fn keys_are_hexadecimal_and_nothing_is_shown() {
    let (signer, secret) = Signer::generate().unwrap();
    let key = signer.public();
    assert_eq!(key.to_string().parse(), Ok(key));
    let text = key.to_string();
    for wrong in [
        "",
        "00",
        &text[1..],
        &format!("{text}0"),
        &format!("{text}00"),
        &format!("{}g", &text[1..]),
    ] {
        assert!(wrong.parse::<PublicKey>().is_err(), "{wrong}");
    }
    let right = signer.sign(&statement());
    let shown = format!("{signer:?} {right:?}");
    let expected = format!(
        "Signer {{ key: {}, .. }} SignedRight({} bytes)",
        key.id(),
        right.bytes().len()
    );
    assert_eq!(shown, expected);
    assert_eq!(Signer::from_pkcs8(&secret).unwrap().public(), key);
}

#[test]
fn a_keyring_keeps_the_newest() {
    let keys = (0..=MAX_KEYS).map(|n| {
        let mut key = [0; 32];
        key[0] = u8::try_from(n).unwrap();
        TrustedKey {
            key: PublicKey(key),
            retired: false,
        }
    });
    let keys = Keyring::new(keys.collect());
    assert_eq!((keys.keys().len(), keys.keys()[0].key.0[0]), (MAX_KEYS, 1));
}

proptest! {
    #[test]
    fn garbage_is_refused(bytes in proptest::collection::vec(any::<u8>(), 0..600), fenced in any::<u64>()) {
        let keys = ring_of(&[&signer()]);
        prop_assert!(keys.verify(&bytes, asked(5, fenced), ISSUED).is_err());
    }

    #[test]
    fn garbage_that_looks_like_one_is_refused(
        tail in proptest::collection::vec(any::<u8>(), 0..400),
        node in 0_usize..300,
    ) {
        let signer = signer();
        let right = signer.sign(&statement());
        let mut bytes = right.bytes()[..56].to_vec();
        bytes.push(u8::try_from(node % 256).unwrap());
        bytes.extend(tail);
        prop_assert!(ring_of(&[&signer]).verify(&bytes, asked(5, 5), ISSUED).is_err());
    }

    #[test]
    fn what_was_signed_is_what_is_read(
        volume in any::<u128>(), epoch in any::<u64>(), node in ".{0,60}", read_only in any::<bool>(),
        issued in any::<u64>(), expires in any::<u64>(),
    ) {
        let signer = signer();
        let said = Statement {
            volume: VolumeId(Uuid::from_u128(volume)),
            epoch: Epoch(epoch),
            node,
            read_only,
            issued: Seconds(issued),
            expires: Seconds(expires),
        };
        let asked = Asked { volume: said.volume, epoch: said.epoch, fenced: said.epoch };
        let right = signer.sign(&said);
        prop_assert!(right.bytes().len() <= MAX_RIGHT);
        let granted = ring_of(&[&signer]).verify(right.bytes(), asked, ISSUED).unwrap();
        prop_assert_eq!(granted.statement, said);
    }
}
