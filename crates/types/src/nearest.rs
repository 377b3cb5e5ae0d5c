//! The known name that somebody may have meant.

/// The nearest of the `known` names to a text, if one is near enough to be meant.
pub fn nearest<'a>(known: impl IntoIterator<Item = &'a str>, text: &str) -> Option<&'a str> {
    known
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(name, text), name))
        .min()
        .filter(|(distance, name)| *distance <= 1 + name.len() / 3)
        .map(|(_, name)| name)
}
