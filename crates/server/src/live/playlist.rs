//! The playlist of a clip that is watched, as viewers get it: with links instead of names of files.

/// The names that a writer of HLS gives to files that its playlist lists.
pub(crate) fn is_segment(name: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    name == "init.mp4" || name.strip_suffix(".m4s").is_some_and(is_number)
}

/// The playlist with a link for each name. Comments are left out.
pub(crate) fn linked(playlist: &str, link: impl Fn(&str) -> String) -> String {
    let line = |line: &str| -> Option<String> {
        if let Some(name) = line.strip_prefix("#EXT-X-MAP:URI=\"").and_then(|rest| rest.strip_suffix('"')) {
            return Some(format!("#EXT-X-MAP:URI=\"{}\"\n", link(name)));
        }
        if line.starts_with("#EXT") {
            return Some(format!("{line}\n"));
        }
        is_segment(line).then(|| format!("{}\n", link(line)))
    };
    playlist.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_links_and_nothing_else_changes() {
        let playlist = "#EXTM3U\n# Made by Rushes.\n#EXT-X-VERSION:7\n# Was: 00001.m4s\n\
                        #EXT-X-MAP:URI=\"init.mp4\"\n#EXTINF:1.000000,\n00002.m4s\n#EXT-X-ENDLIST\n";
        let expected = "#EXTM3U\n#EXT-X-VERSION:7\n#EXT-X-MAP:URI=\"/m/init.mp4\"\n#EXTINF:1.000000,\n\
                        /m/00002.m4s\n#EXT-X-ENDLIST\n";
        assert_eq!(linked(playlist, |name| format!("/m/{name}")), expected);
    }

    #[test]
    fn only_files_of_a_playlist_are_segments() {
        assert!(is_segment("init.mp4") && is_segment("00012.m4s"));
        for name in ["", ".m4s", "a.m4s", "../1.m4s", "1.m4s/", "index.m3u8", "index.m3u8.part", "init.mp4x"]
        {
            assert!(!is_segment(name), "{name}");
        }
    }
}
