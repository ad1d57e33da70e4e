//! Requests and responses of RTSP 1.0 (RFC 2326), as far as a playing client needs them. Pure.

use std::fmt::Write;

/// A request of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) method: String,
    sequence: String,
    transport: Option<String>,
}

/// The transport of the packets of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    /// Interleaved with the responses, on this channel.
    Interleaved(u8),
    /// Datagrams to this port, with reports to the next port.
    Datagrams(u16),
}

impl Request {
    /// Parses a request. Returns `None` if it is malformed.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let mut first = lines.next()?.split(' ');
        let (method, _url, version) = (first.next()?, first.next()?, first.next()?);
        let mut request = Self { method: method.to_owned(), sequence: String::new(), transport: None };
        for (name, value) in lines.filter_map(|line| line.split_once(':')) {
            if name.eq_ignore_ascii_case("cseq") {
                value.trim().clone_into(&mut request.sequence);
            } else if name.eq_ignore_ascii_case("transport") {
                request.transport = Some(value.trim().to_owned());
            }
        }
        (version.starts_with("RTSP/") && !request.sequence.is_empty()).then_some(request)
    }

    /// The first supported transport that the client offers.
    pub(super) fn transport(&self) -> Option<Transport> {
        self.transport.as_deref()?.split(',').find_map(|offer| {
            let value = |name: &str| {
                let found = offer.split(';').find_map(|field| field.trim().strip_prefix(name))?;
                found.trim_start_matches('=').split('-').next().map(str::to_owned)
            };
            if offer.contains("multicast") {
                None
            } else if offer.contains("RTP/AVP/TCP") {
                let channel = value("interleaved").and_then(|channel| channel.parse().ok()).unwrap_or(0);
                Some(Transport::Interleaved(channel))
            } else {
                value("client_port")?.parse().ok().map(Transport::Datagrams)
            }
        })
    }

    /// A response with further header lines and a body.
    pub(super) fn response(&self, status: &str, lines: &[String], body: &str) -> String {
        let mut text = format!("RTSP/1.0 {status}\r\nCSeq: {}\r\n", self.sequence);
        for line in lines {
            // Writing into a String cannot fail.
            let _ = write!(text, "{line}\r\n");
        }
        if !body.is_empty() {
            let _ = write!(text, "Content-Length: {}\r\n", body.len());
        }
        format!("{text}\r\n{body}")
    }
}

/// A packet interleaved with responses.
pub(super) fn interleaved(channel: u8, packet: &[u8]) -> Vec<u8> {
    let length = u16::try_from(packet.len()).unwrap_or(u16::MAX);
    [&[b'$', channel], &length.to_be_bytes()[..], packet].concat()
}

/// The SDP of one H.264 stream (RFC 6184). `parameters` are from the caps of the payloader.
pub(super) fn description(title: &str, payload_type: i32, parameters: &str) -> String {
    format!(
        "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns={title}\r\nt=0 0\r\na=control:*\r\nm=video 0 RTP/AVP {payload_type}\r\n\
         c=IN IP4 0.0.0.0\r\na=rtpmap:{payload_type} H264/90000\r\n\
         a=fmtp:{payload_type} packetization-mode=1{parameters}\r\na=control:stream=0\r\n"
    )
}

/// Returns true if an H.264 packet (RFC 6184) starts with parameter sets, so that a decoder can start with it.
pub(super) fn starts_with_parameter_sets(packet: &[u8]) -> bool {
    const PARAMETER_SET: u8 = 7;
    const AGGREGATE: u8 = 24;
    let sources = usize::from(packet.first().copied().unwrap_or(0) & 0x0f);
    let payload = packet.get(12 + 4 * sources..).unwrap_or_default();
    let kind = |byte: Option<&u8>| byte.map_or(0, |byte| byte & 0x1f);
    match kind(payload.first()) {
        PARAMETER_SET => true,
        AGGREGATE => kind(payload.get(3)) == PARAMETER_SET,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setup(transport: &str) -> Request {
        let text =
            format!("SETUP rtsp://h/clip/stream=0 RTSP/1.0\r\nCSeq: 3\r\nTransport: {transport}\r\n\r\n");
        Request::parse(&text).unwrap()
    }

    #[test]
    fn responses_have_the_sequence_number_of_their_request() {
        let request = Request::parse("OPTIONS rtsp://h/clip RTSP/1.0\r\ncseq: 1\r\n\r\n").unwrap();
        assert_eq!(request.method, "OPTIONS");
        assert_eq!(request.response("200 OK", &[], ""), "RTSP/1.0 200 OK\r\nCSeq: 1\r\n\r\n");
        let response = request.response("200 OK", &["Public: PLAY".into()], "v=0\r\n");
        assert_eq!(
            response,
            "RTSP/1.0 200 OK\r\nCSeq: 1\r\nPublic: PLAY\r\nContent-Length: 5\r\n\r\nv=0\r\n"
        );
        for wrong in ["", "GET / HTTP/1.1\r\nCSeq: 1", "OPTIONS * RTSP/1.0\r\n", "\u{0}"] {
            assert_eq!(Request::parse(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn the_first_supported_transport_is_used() {
        assert_eq!(setup("RTP/AVP/TCP;unicast;interleaved=2-3").transport(), Some(Transport::Interleaved(2)));
        assert_eq!(
            setup("RTP/AVP;unicast;client_port=5000-5001").transport(),
            Some(Transport::Datagrams(5000))
        );
        assert_eq!(
            setup("RTP/AVP;multicast,RTP/AVP/UDP;unicast;client_port=9-10").transport(),
            Some(Transport::Datagrams(9))
        );
        assert_eq!(setup("RTP/AVP;unicast").transport(), None);
    }

    #[test]
    fn parameter_sets_are_detected_at_the_start_of_a_packet() {
        let packet = |payload: &[u8]| [&[0x80; 12][..], payload].concat();
        assert!(starts_with_parameter_sets(&packet(&[0x67])));
        assert!(starts_with_parameter_sets(&packet(&[24, 0, 9, 0x67])));
        assert!(
            !starts_with_parameter_sets(&packet(&[0x68])) && !starts_with_parameter_sets(&packet(&[0x41]))
        );
        assert!(!starts_with_parameter_sets(&[]));
    }

    #[test]
    fn interleaved_packets_have_channel_and_length() {
        assert_eq!(interleaved(2, b"abc"), b"$\x02\0\x03abc");
    }
}
