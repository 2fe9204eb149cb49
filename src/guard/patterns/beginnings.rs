//! Where in a text one of many fixed beginnings stands. Every byte of all logs passes here, so nearly all of them have to cost next to nothing:
//! of each beginning the two bytes in a row are looked for that are the rarest in logs, by a table that every place of the text is looked up
//! in, sixteen at a time without a branch. An automaton would have to wait for its table at each byte.
//!
//! Invariant: at a place where several beginnings stand only the longest is told.

pub struct Beginnings {
    /// By two bytes in a row: 0, or the number of the bucket after.
    table: Box<[u8]>,
    /// Of each sign the beginnings that have it, longest first.
    buckets: Vec<Vec<Beginning>>,
}

struct Beginning {
    number: usize,
    text: &'static [u8],
    /// Where in it the sign stands.
    sign: usize,
}

impl Beginnings {
    /// Of at least two bytes each, and with no more than 255 different signs.
    pub fn new(texts: impl Iterator<Item = &'static str>) -> Self {
        let mut table = vec![0_u8; PAIRS].into_boxed_slice();
        let mut buckets: Vec<Vec<Beginning>> = Vec::new();
        for (number, text) in texts.enumerate() {
            let text = text.as_bytes();
            let sign = rarest_pair(text);
            let entry = &mut table[pair(text[sign], text[sign + 1])];
            if *entry == 0 {
                buckets.push(Vec::new());
                *entry = u8::try_from(buckets.len()).unwrap_or(u8::MAX);
            }
            let bucket = &mut buckets[usize::from(*entry) - 1];
            bucket.push(Beginning { number, text, sign });
            bucket.sort_by_key(|beginning| std::cmp::Reverse(beginning.text.len()));
        }
        Self { table, buckets }
    }

    /// Tells the number and the place of each.
    pub fn each(&self, text: &[u8], mut see: impl FnMut(usize, usize)) {
        let mut at = 0;
        while let Some(block) = text[at..].first_chunk::<{ STEP + 1 }>() {
            let signs = (0..STEP).fold(0, |signs, next| signs | self.table[pair(block[next], block[next + 1])]);
            if signs != 0 {
                (0..STEP).for_each(|next| self.look(text, at + next, &mut see));
            }
            at += STEP;
        }
        (at..text.len().saturating_sub(1)).for_each(|at| self.look(text, at, &mut see));
    }

    /// At one place, where a sign may be.
    fn look(&self, text: &[u8], at: usize, see: &mut impl FnMut(usize, usize)) {
        let bucket = self.table[pair(text[at], text[at + 1])];
        let Some(bucket) = usize::from(bucket).checked_sub(1).map(|bucket| &self.buckets[bucket]) else { return };
        let stands = |beginning: &Beginning| {
            let start = at.checked_sub(beginning.sign);
            start.is_some_and(|start| text[start..].starts_with(beginning.text))
        };
        for (index, beginning) in bucket.iter().enumerate().filter(|(_, beginning)| stands(beginning)) {
            let has_longer = bucket[..index].iter().any(|longer| longer.sign == beginning.sign && stands(longer));
            if !has_longer {
                see(beginning.number, at - beginning.sign);
            }
        }
    }
}

fn pair(first: u8, second: u8) -> usize {
    usize::from(u16::from_le_bytes([first, second]))
}

/// Where in the text the two bytes stand that are the rarest in logs.
fn rarest_pair(text: &[u8]) -> usize {
    let often = |at: &usize| how_often(text[*at]) * how_often(text[at + 1]);
    (0..text.len().saturating_sub(1)).min_by_key(often).unwrap_or(0)
}

/// Roughly, in logs, beside others.
fn how_often(byte: u8) -> u32 {
    match byte {
        b'&' => 1,
        b'j' | b'q' | b'x' | b'z' | b'_' => 2,
        b'A'..=b'Z' => 2,
        b'-' | b':' | b'/' | b'=' => 3,
        b'b' | b'f' | b'g' | b'k' | b'p' | b'v' | b'w' | b'y' | b'.' => 4,
        b'0'..=b'9' => 6,
        _ => 8,
    }
}

const PAIRS: usize = 1 << 16;
/// Places that are looked up together.
const STEP: usize = 16;

#[cfg(test)]
mod tests {
    use aho_corasick::{AhoCorasick, MatchKind};
    use proptest::prelude::*;

    use super::super::shapes::SHAPES;
    use super::*;

    fn texts() -> impl Iterator<Item = &'static str> {
        SHAPES.iter().map(|shape| shape.begins)
    }

    #[test]
    fn there_are_few_signs() {
        let beginnings = Beginnings::new(texts());
        assert!(beginnings.buckets.len() < 100, "{}", beginnings.buckets.len());
        assert!(texts().all(|text| text.len() >= 2));
    }

    proptest! {
        /// An automaton finds the same, where it does not go on behind what it has found.
        #[test]
        fn every_place_is_found(parts in proptest::collection::vec((0..SHAPES.len(), 0_usize..30, "[ -~]{0,4}"), 0..12)) {
            let mut text = String::new();
            for (shape, cut, between) in parts {
                let begins = SHAPES[shape].begins;
                text.push_str(&begins[..begins.len().min(cut + 1)]);
                text.push_str(&between);
            }
            let automaton = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(texts()).unwrap();
            let mut found = Vec::new();
            Beginnings::new(texts()).each(text.as_bytes(), |number, start| found.push((number, start)));
            for hit in automaton.find_iter(&text) {
                prop_assert!(found.contains(&(hit.pattern().as_usize(), hit.start())), "{} in {text:?}", &text[hit.range()]);
            }
            for (number, start) in found {
                prop_assert!(text[start..].starts_with(SHAPES[number].begins));
                let longer = texts().any(|other| other.len() > SHAPES[number].begins.len() && text[start..].starts_with(other));
                prop_assert!(!longer, "{} at {start} in {text:?}", SHAPES[number].begins);
            }
        }
    }
}
