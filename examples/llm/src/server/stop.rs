//! Texts that end a completion, wherever they fall between its tokens.

/// Looks for stop texts in a text that comes in pieces.
///
/// What may be the beginning of a stop text is held back until it is known.
#[derive(Debug)]
pub struct StopTexts {
    stops: Vec<String>,
    held: String,
}

impl StopTexts {
    /// Empty texts stop nothing.
    pub fn new(mut stops: Vec<String>) -> Self {
        stops.retain(|stop| !stop.is_empty());
        Self { stops, held: String::new() }
    }

    /// Takes a piece: what is certain of the text, and whether a stop text followed it.
    pub fn push(&mut self, piece: &str) -> (String, bool) {
        self.held.push_str(piece);
        let found = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        if let Some(at) = found {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let held = self.beginning();
        let certain = self.held.len() - held;
        let rest = self.held.split_off(certain);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// What was held back, when nothing follows.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Bytes at the end that a stop text begins with.
    fn beginning(&self) -> usize {
        let longest = |stop: &String| {
            let most = self.held.len().min(stop.len() - 1);
            (1..=most).rev().find(|&len| {
                stop.is_char_boundary(len)
                    && self.held.as_bytes().ends_with(&stop.as_bytes()[..len])
            })
        };
        self.stops.iter().filter_map(longest).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let mut texts = StopTexts::new(stops.iter().map(|&stop| stop.to_owned()).collect());
        let mut all = String::new();
        for piece in pieces {
            let (certain, stopped) = texts.push(piece);
            all.push_str(&certain);
            if stopped {
                return (all, true);
            }
        }
        all.push_str(&texts.finish());
        (all, false)
    }

    #[test]
    fn stops_are_found_across_pieces() {
        assert_eq!(run(&["END"], &["one E", "N", "D two"]), ("one ".to_owned(), true));
        assert_eq!(run(&["\n\n"], &["a\n", "b\n", "\nc"]), ("a\nb".to_owned(), true));
        assert_eq!(run(&["xyz", "yz"], &["wx", "yz"]), ("w".to_owned(), true));
        assert_eq!(run(&["aab"], &["a", "a", "a", "b"]), ("a".to_owned(), true));
    }

    #[test]
    fn what_only_looked_like_a_stop_is_given_out() {
        assert_eq!(run(&["END"], &["EN", "EN"]), ("ENEN".to_owned(), false));
        assert_eq!(run(&["", "éé"], &["aé", "b"]), ("aéb".to_owned(), false));
        assert_eq!(run(&[], &["a", "b"]), ("ab".to_owned(), false));
    }

    #[test]
    fn nothing_is_held_back_that_no_stop_begins_with() {
        let mut texts = StopTexts::new(vec!["stop".to_owned()]);
        assert_eq!(texts.push("go on st"), ("go on ".to_owned(), false));
        assert_eq!(texts.push("art"), ("start".to_owned(), false));
    }
}
