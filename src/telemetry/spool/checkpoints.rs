//! Where every source stands, as the newest frames say. Bounded: the source that was silent longest makes room for a new one.

use std::collections::BTreeMap;

use super::frame::{Checkpoint, MOST_POSITION_BYTES, MOST_SOURCE_BYTES};

#[derive(Debug, Default)]
pub struct Checkpoints {
    sources: BTreeMap<String, Entry>,
    turn: u64,
}

#[derive(Debug)]
struct Entry {
    position: Vec<u8>,
    turn: u64,
}

impl Checkpoints {
    /// Takes over what an older frame says of sources that no newer one speaks of. An empty position is kept, to say that it is gone.
    pub fn add_older(&mut self, older: BTreeMap<String, Vec<u8>>) {
        for (source, position) in older {
            self.sources.entry(source).or_insert(Entry { position, turn: 0 });
        }
    }

    /// Forgets the sources that are gone, after all frames were looked at.
    pub fn settle(&mut self) {
        self.sources.retain(|_, entry| !entry.position.is_empty());
    }

    pub fn set(&mut self, checkpoint: Checkpoint<'_>) {
        let Checkpoint { source, position } = checkpoint;
        if position.is_empty() {
            self.sources.remove(source);
            return;
        }
        self.turn += 1;
        if let Some(entry) = self.sources.get_mut(source) {
            entry.position.clear();
            entry.position.extend_from_slice(position);
            entry.turn = self.turn;
            return;
        }
        if self.sources.len() >= MOST_SOURCES
            && let Some(silent) = self.sources.iter().min_by_key(|(_, entry)| entry.turn).map(|(name, _)| name.clone())
        {
            self.sources.remove(&silent);
        }
        self.sources.insert(source.to_owned(), Entry { position: position.to_vec(), turn: self.turn });
    }

    pub fn get(&self, source: &str) -> Option<&[u8]> {
        self.sources.get(source).map(|entry| entry.position.as_slice())
    }

    pub fn iter(&self) -> impl Iterator<Item = Checkpoint<'_>> {
        self.sources.iter().map(|(source, entry)| Checkpoint { source, position: &entry.position })
    }
}

/// All of them fit into one frame.
const MOST_SOURCES: usize = 2048;
const _: () = assert!(MOST_SOURCES * (4 + MOST_SOURCE_BYTES + MOST_POSITION_BYTES) < 6 * 1024 * 1024);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_word_counts_and_the_silent_make_room() {
        let mut kept = Checkpoints::default();
        kept.set(Checkpoint { source: "gone", position: b"1" });
        kept.set(Checkpoint { source: "gone", position: b"" });
        kept.set(Checkpoint { source: "a", position: b"2" });
        kept.add_older(BTreeMap::from([("a".to_owned(), b"1".to_vec()), ("b".to_owned(), b"9".to_vec())]));
        kept.settle();
        assert_eq!((kept.get("a"), kept.get("b"), kept.get("gone")), (Some(&b"2"[..]), Some(&b"9"[..]), None));
        for number in 0..MOST_SOURCES {
            kept.set(Checkpoint { source: &format!("s{number}"), position: b"1" });
        }
        assert_eq!((kept.iter().count(), kept.get("a"), kept.get("b")), (MOST_SOURCES, None, None));
    }
}
