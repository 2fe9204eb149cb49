//! What is sealed opens, and nothing else does. The peers of the format are met in tests/sealed.rs.

use proptest::prelude::*;

use super::*;

fn identity() -> Identity {
    Identity::generate().unwrap()
}

fn sealed_for(identity: &Identity, plain: &[u8]) -> Vec<u8> {
    seal(plain, &Recipients::Keys(vec![identity.recipient()])).unwrap()
}

fn key(identity: Identity) -> Key {
    Key::Identities(vec![identity])
}

#[test]
fn every_length_around_a_chunk_opens_in_both_forms() {
    let key = key(identity());
    let Key::Identities(identities) = &key else { unreachable!() };
    for length in [0, 1, 65_535, 65_536, 65_537, 131_072, 200_000] {
        let plain: Vec<u8> = (0..length).map(|at: u32| at as u8).collect();
        let sealed = sealed_for(&identities[0], &plain);
        assert!(is_sealed(&sealed));
        assert_eq!(*open(&sealed, &key).unwrap(), plain, "{length} bytes");
        let armored = armor(&sealed);
        assert!(is_sealed(armored.as_bytes()));
        assert_eq!(*open(armored.replace('\n', "\r\n").as_bytes(), &key).unwrap(), plain, "{length} bytes, armored");
    }
}

#[test]
fn a_passphrase_opens_and_another_does_not() {
    let file_key = FileKey::generate().unwrap();
    let lock = lock::for_passphrase(&file_key, &Secret::copy_from(b"correct horse"), 4).unwrap();
    let mut sealed = Header::write(&[lock], &file_key).unwrap();
    payload::seal(b"plain", &file_key, &mut sealed).unwrap();
    let with = |words: &[u8]| open(&sealed, &Key::Passphrase(Secret::copy_from(words)));
    assert_eq!(**with(b"correct horse").unwrap(), *b"plain");
    assert!(matches!(with(b"correct house"), Err(SealError::WrongPassphrase)));
    assert!(matches!(open(&sealed, &key(identity())), Err(SealError::NeedsPassphrase)));
    let costly = String::from_utf8_lossy(&sealed).replacen(" 4\n", " 30\n", 1).into_bytes();
    assert!(matches!(
        open(&costly, &Key::Passphrase(Secret::copy_from(b"x"))),
        Err(SealError::TooMuchWork { given: 30 })
    ));
}

#[test]
fn one_of_several_recipients_opens_and_a_stranger_does_not() {
    let (first, second) = (identity(), identity());
    let recipients = Recipients::Keys(vec![first.recipient(), second.recipient()]);
    let sealed = seal(b"plain", &recipients).unwrap();
    assert_eq!(**open(&sealed, &key(second)).unwrap(), *b"plain");
    assert_eq!(**open(&sealed, &Key::Identities(vec![identity(), first])).unwrap(), *b"plain");
    assert!(matches!(open(&sealed, &key(identity())), Err(SealError::WrongKey)));
}

#[test]
fn a_lock_of_an_unknown_kind_is_passed_over() {
    let identity = identity();
    let file_key = FileKey::generate().unwrap();
    let strange = header::Lock::new("joint-oil-hw", vec!["x".to_owned()], vec![7; 96]);
    let locks = [strange, lock::for_key(&file_key, &identity.recipient()).unwrap()];
    let mut sealed = Header::write(&locks, &file_key).unwrap();
    payload::seal(b"plain", &file_key, &mut sealed).unwrap();
    assert_eq!(**open(&sealed, &key(identity)).unwrap(), *b"plain");
}

#[test]
fn a_file_key_of_before_is_told_from_another() {
    let identity = identity();
    let (one, other) = (sealed_for(&identity, b"one"), sealed_for(&identity, b"other"));
    let (one, other) = (Locked::parse(&one).unwrap(), Locked::parse(&other).unwrap());
    let file_key = one.unlock(&key(identity)).unwrap();
    assert!(one.is_opened_by(&file_key) && !other.is_opened_by(&file_key));
}

#[test]
fn keys_are_written_as_age_writes_them() {
    let identity = Identity::generate().unwrap();
    let words = identity.in_words();
    let mut lines = words.lines();
    let public = lines.next().unwrap().strip_prefix("# public key: ").unwrap();
    assert!(public.starts_with("age1") && public.len() == 62, "{public}");
    assert_eq!(public.parse::<Recipient>().unwrap(), identity.recipient());
    assert!(lines.next().unwrap().starts_with("AGE-SECRET-KEY-1"));
    let refused = "AGE-SECRET-KEY-1QQQ".parse::<Recipient>().unwrap_err().to_string();
    assert!(!refused.contains("1QQQ"), "a secret key is not repeated: {refused}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_change_of_any_byte_is_noticed(at in 0.0..1.0_f64, bit in 0_u8..8, length in 0_usize..300) {
        let identity = identity();
        let plain = vec![b'x'; length];
        let mut sealed = sealed_for(&identity, &plain);
        let at = (at * sealed.len() as f64) as usize;
        sealed[at] ^= 1 << bit;
        prop_assert!(open(&sealed, &key(identity)).is_err());
    }

    #[test]
    fn no_bytes_make_it_panic(mut tail in prop::collection::vec(any::<u8>(), 0..400), headed: bool) {
        let mut bytes = if headed { header::FIRST_LINE.to_vec() } else { Vec::new() };
        bytes.append(&mut tail);
        prop_assert!(open(&bytes, &key(identity())).is_err());
    }

    #[test]
    fn what_is_cut_short_does_not_open(kept in 0.0..1.0_f64) {
        let identity = identity();
        let sealed = sealed_for(&identity, &[b'x'; 100]);
        let kept = (kept * sealed.len() as f64) as usize;
        prop_assert!(open(&sealed[..kept], &key(identity)).is_err());
    }
}
