//! Texts without the paths of the machine.

/// The text with each absolute path replaced by the last part of it, in which it is known to people.
///
/// Errors of the queue name files of the server. A client has no use for its folders.
pub(crate) fn without(text: &str) -> String {
    let shorten = |word: &str| -> String {
        let start = word.find(|c: char| !"\"'`(".contains(c)).unwrap_or(0);
        let (quote, rest) = word.split_at(start);
        if !rest.starts_with('/') {
            return word.to_owned();
        }
        let name = rest.rsplit('/').find(|part| !part.is_empty()).unwrap_or("a folder");
        format!("{quote}{name}")
    };
    text.split(' ').map(shorten).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_the_machine_are_not_shown() {
        assert_eq!(
            without("cannot write /srv/data/clips/a.mp4: it is full"),
            "cannot write a.mp4: it is full"
        );
        assert_eq!(without("the folder (/srv/data) is gone"), "the folder (data) is gone");
        assert_eq!(without("1/2 of it"), "1/2 of it");
    }
}
