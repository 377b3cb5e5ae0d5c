//! As much of the DNS message format as a forwarder needs: RFC 1035 section 4.

const HEADER_LEN: usize = 12;

/// The largest question taken over UDP, in bytes. With every extension a real one has a tenth.
pub(super) const MAX_QUERY_LEN: usize = 4096;

/// The largest answer, in bytes: what a length of two bytes can say.
pub(super) const MAX_ANSWER_LEN: usize = 65_535;

const RESPONSE: u8 = 0x80;
const RECURSION_AVAILABLE: u8 = 0x80;
const SERVER_FAILURE: u8 = 2;
const REFUSED: u8 = 5;

/// A question that is well formed: a header that says so, and one name, type and class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Query {
    bytes: Vec<u8>,
    question_end: usize,
}

impl Query {
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let is_question = bytes.len() >= HEADER_LEN
            && bytes.len() <= MAX_QUERY_LEN
            && bytes[2] & RESPONSE == 0
            && bytes[4..6] == [0, 1];
        if !is_question {
            return None;
        }
        let question_end = question_end(bytes)?;
        Some(Self { bytes: bytes.to_vec(), question_end })
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// True when `answer` answers this question. One without any question, as some resolvers send
    /// with an error, is told by its id alone.
    pub(super) fn is_answered_by(&self, answer: &[u8]) -> bool {
        let is_answer = answer.len() >= HEADER_LEN
            && answer[..2] == self.bytes[..2]
            && answer[2] & RESPONSE != 0;
        let question = HEADER_LEN..self.question_end;
        is_answer
            && (answer[4..6] == [0, 0]
                || answer
                    .get(question.clone())
                    .is_some_and(|echoed| echoed.eq_ignore_ascii_case(&self.bytes[question])))
    }

    /// The answer that there is no answer.
    pub(super) fn server_failure(&self) -> Vec<u8> {
        let mut answer = self.bytes[..self.question_end].to_vec();
        answer[2] |= RESPONSE;
        answer[3] = RECURSION_AVAILABLE | SERVER_FAILURE;
        // One question, and no record in any of the three sections.
        answer[6..HEADER_LEN].fill(0);
        answer
    }
}

/// True when the resolver itself could or would not answer, so that another one may.
pub(super) fn is_failure(answer: &[u8]) -> bool {
    answer.get(3).is_some_and(|flags| matches!(flags & 0x0f, SERVER_FAILURE | REFUSED))
}

/// Where the question ends. A name in a question is never compressed.
fn question_end(bytes: &[u8]) -> Option<usize> {
    let mut at = HEADER_LEN;
    loop {
        let len = usize::from(*bytes.get(at)?);
        at += 1;
        match len {
            0 => break,
            1..=63 => at += len,
            _ => return None,
        }
        if at - HEADER_LEN > 254 {
            return None;
        }
    }
    let end = at + 4;
    (end <= bytes.len()).then_some(end)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn question(name: &[&str]) -> Vec<u8> {
        let mut bytes = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name {
            bytes.push(u8::try_from(label.len()).unwrap());
            bytes.extend(label.as_bytes());
        }
        bytes.extend([0, 0, 1, 0, 1]);
        bytes
    }

    #[test]
    fn questions_are_taken_and_everything_else_is_not() {
        let good = question(&["www", "example", "com"]);
        assert!(Query::parse(&good).is_some());
        assert!(Query::parse(&question(&[])).is_some(), "the root");

        let long = "x".repeat(63);
        let long = question(&[&long, &long, &long, &long, &long]);
        let changed = |at: usize, to: u8| {
            let mut bytes = good.clone();
            bytes[at] = to;
            bytes
        };
        for (what, bytes) in [
            ("empty", vec![]),
            ("a header alone", good[..12].to_vec()),
            ("cut off", good[..good.len() - 1].to_vec()),
            ("an answer", changed(2, 0x81)),
            ("no question", changed(5, 0)),
            ("two questions", changed(5, 2)),
            ("a compressed name", changed(12, 0xc0)),
            ("a name over 255 bytes", long),
            ("oversized", [good.clone(), vec![0; MAX_QUERY_LEN]].concat()),
        ] {
            assert_eq!(Query::parse(&bytes), None, "{what}");
        }
    }

    #[test]
    fn an_answer_has_the_id_and_the_question() {
        let query = Query::parse(&question(&["www", "example", "com"])).unwrap();
        let mut answer = query.server_failure();
        assert!(query.is_answered_by(&answer));
        assert!(is_failure(&answer));
        answer[13] = b'W';
        assert!(query.is_answered_by(&answer), "case does not matter");
        answer[13] = b'x';
        assert!(!query.is_answered_by(&answer), "another name");
        let mut other_id = query.server_failure();
        other_id[0] ^= 1;
        assert!(!query.is_answered_by(&other_id));
        assert!(!query.is_answered_by(query.as_bytes()), "a question is no answer");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            if let Some(query) = Query::parse(&bytes) {
                prop_assert!(query.is_answered_by(&query.server_failure()));
                query.is_answered_by(&bytes);
            }
        }
    }
}
