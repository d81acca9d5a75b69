//! Telling a message's characters from the template's: in disguise, each character of a message that could belong to
//! a special token is another one, which occurs nowhere else. Length, white space and order stay, so that a template
//! that trims or splits lines does to the disguise what it does to the message.

use super::ChatMessage;
use crate::error::{Error, Result};
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

/// The characters that disguise: the private-use planes.
const MASKS: [std::ops::RangeInclusive<char>; 2] = ['\u{f0000}'..='\u{ffffd}', '\u{100000}'..='\u{10fffd}'];

pub(super) struct Disguise<'a> {
    /// The texts of the tokens that steer the model.
    specials: Vec<&'a str>,
    masks: HashMap<char, char>,
    faces: HashMap<char, char>,
}

impl<'a> Disguise<'a> {
    /// Masks for all characters of `specials` but white space. They occur in none of the messages and in none of
    /// `inputs`, which is what else the template works on.
    ///
    /// # Errors
    /// [`Error::ChatTemplate`] where these leave no private-use characters to make masks of.
    pub(super) fn new(specials: Vec<&'a str>, inputs: [&str; 3], messages: &[ChatMessage]) -> Result<Self> {
        let words = messages.iter().flat_map(|m| [m.role.as_str(), m.content.as_str()]);
        let taken: HashSet<char> = specials
            .iter()
            .copied()
            .chain(inputs)
            .chain(words)
            .flat_map(str::chars)
            .filter(|c| MASKS.iter().any(|range| range.contains(c)))
            .collect();
        let mut free = MASKS.into_iter().flatten().filter(|c| !taken.contains(c));
        let mut masks = HashMap::new();
        for c in specials.iter().flat_map(|s| s.chars()).filter(|c| !c.is_whitespace()) {
            if let Entry::Vacant(entry) = masks.entry(c) {
                let reason = "the messages use up Unicode's private-use characters, which special tokens are told apart by";
                let mask = free.next().ok_or_else(|| Error::ChatTemplate { reason: reason.to_owned() })?;
                entry.insert(mask);
            }
        }
        let faces = masks.iter().map(|(&c, &mask)| (mask, c)).collect();
        Ok(Self { specials, masks, faces })
    }

    fn mask(&self, c: char) -> char {
        self.masks.get(&c).copied().unwrap_or(c)
    }

    /// The text without its disguise.
    pub(super) fn remove(&self, text: &str) -> String {
        text.chars().map(|c| self.faces.get(&c).copied().unwrap_or(c)).collect()
    }

    /// The messages with every character that has a mask in disguise.
    pub(super) fn whole(&self, messages: &[ChatMessage]) -> Vec<ChatMessage> {
        rewrite(messages, |content| content.chars().map(|c| self.mask(c)).collect())
    }

    /// The messages with only those characters in disguise with which a special token's text begins: where it stands
    /// in a message as a whole, and where a message, blanks aside, ends in a part of it.
    pub(super) fn specials_only(&self, messages: &[ChatMessage]) -> Vec<ChatMessage> {
        rewrite(messages, |content| {
            let mut starts = HashSet::new();
            let end = content.trim_end();
            for special in &self.specials {
                let mut from = 0;
                // One place may lie inside the one before it.
                while let Some(at) = content.get(from..).and_then(|rest| rest.find(special)) {
                    starts.insert(from + at);
                    from += at + special.chars().next().map_or(1, char::len_utf8);
                }
                let parts = special.char_indices().skip(1).filter_map(|(at, _)| special.get(..at));
                starts.extend(parts.filter(|part| end.ends_with(part)).map(|part| end.len() - part.len()));
            }
            content
                .char_indices()
                .map(|(at, c)| if starts.contains(&at) { self.mask(c) } else { c })
                .collect()
        })
    }
}

fn rewrite(messages: &[ChatMessage], content: impl Fn(&str) -> String) -> Vec<ChatMessage> {
    messages.iter().map(|m| ChatMessage::new(m.role.clone(), content(&m.content))).collect()
}
