//! Records as one run of bytes: the file of a store in memory, and what a backup holds.
//!
//! ```text
//! "mcpeg records 1\n"
//! for each record:  space u8 | length of key u32 | length of value u32 | until u64 (ms since the epoch, 0: none) | key | value
//! end:              0 u8 | number of records u64 | CRC-32 of all before it u32
//! ```
//!
//! Numbers are big-endian. Without its end, or with another checksum, nothing of it is used.

use bytes::Bytes;

use super::records::{Record, Space};

pub fn encode<'a>(records: impl Iterator<Item = (Space, &'a str, &'a Bytes, Option<u64>)>) -> Vec<u8> {
    let mut bytes = HEAD.to_vec();
    let mut count: u64 = 0;
    for (space, key, value, until) in records {
        count += 1;
        bytes.push(space.number());
        // Keys and values are bounded far below 4 GiB by whoever sets them.
        bytes.extend_from_slice(&(key.len() as u32).to_be_bytes());
        bytes.extend_from_slice(&(value.len() as u32).to_be_bytes());
        bytes.extend_from_slice(&until.unwrap_or(0).to_be_bytes());
        bytes.extend_from_slice(key.as_bytes());
        bytes.extend_from_slice(value);
    }
    bytes.push(0);
    bytes.extend_from_slice(&count.to_be_bytes());
    let sum = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&sum.to_be_bytes());
    bytes
}

/// The reason quotes nothing.
pub fn decode(bytes: &[u8]) -> Result<Vec<(Space, Record)>, String> {
    let mut rest = bytes.strip_prefix(HEAD).ok_or("it does not begin as one, or is of a later version")?;
    let (body, sum) = bytes.split_last_chunk::<4>().ok_or(SHORT)?;
    if crc32fast::hash(body) != u32::from_be_bytes(*sum) {
        return Err("it is cut short or was changed: its checksum is another".to_owned());
    }
    let mut records = Vec::new();
    loop {
        let number = take::<1>(&mut rest)?[0];
        if number == 0 {
            break;
        }
        let space = Space::of_number(number).ok_or("it holds things of a later version")?;
        let key = u32::from_be_bytes(take(&mut rest)?) as usize;
        let value = u32::from_be_bytes(take(&mut rest)?) as usize;
        let until = u64::from_be_bytes(take(&mut rest)?);
        let (key, after) = rest.split_at_checked(key).ok_or(SHORT)?;
        let (value, after) = after.split_at_checked(value).ok_or(SHORT)?;
        rest = after;
        let key = std::str::from_utf8(key).map_err(|_| "a key is not text")?.to_owned();
        let until = (until != 0).then_some(until);
        records.push((space, Record { key, value: Bytes::copy_from_slice(value), until }));
    }
    let count = u64::from_be_bytes(take(&mut rest)?);
    if rest.len() != 4 || count != records.len() as u64 {
        return Err("it does not hold as many records as it says".to_owned());
    }
    Ok(records)
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], String> {
    let (taken, after) = rest.split_first_chunk::<N>().ok_or(SHORT)?;
    *rest = after;
    Ok(*taken)
}

const HEAD: &[u8] = b"mcpeg records 1\n";
const SHORT: &str = "it is cut short";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_what_it_wrote_and_nothing_that_was_touched() {
        let value = Bytes::from_static(b"\x00value");
        let records = [(Space::State, "breaker/a", &value, None), (Space::Metrics, "é", &value, Some(7))];
        let bytes = encode(records.into_iter());
        let read = decode(&bytes).unwrap();
        assert_eq!(read[1].1, Record { key: "é".to_owned(), value: value.clone(), until: Some(7) });
        assert_eq!((read.len(), read[0].0, &read[0].1.value), (2, Space::State, &value));
        assert_eq!(decode(&encode(std::iter::empty())), Ok(Vec::new()));
        for cut in 0..bytes.len() {
            assert!(decode(&bytes[..cut]).is_err(), "{cut}");
        }
        for at in 0..bytes.len() {
            let mut touched = bytes.clone();
            touched[at] ^= 1;
            assert!(decode(&touched).is_err(), "{at}");
        }
    }
}
