use reqwest::{RequestBuilder, StatusCode, header::HeaderMap};

/// Longest body that is read. A page of a thousand attachments with two portals each takes 1 MB.
const MAX_BODY: usize = 4 << 20;

/// Longest message of a server that an error quotes, in characters.
pub(crate) const MAX_MESSAGE: usize = 400;

/// What came back, whole and bounded.
pub(crate) struct Received {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    /// `None` where it was longer than the limit.
    pub(crate) body: Option<Vec<u8>>,
}

/// Sends, and reads the answer; a body that is too long is left unread.
pub(crate) async fn receive(request: RequestBuilder) -> Result<Received, reqwest::Error> {
    let mut response = request.send().await?;
    let (status, headers) = (response.status(), std::mem::take(response.headers_mut()));
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > MAX_BODY {
            return Ok(Received { status, headers, body: None });
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Received { status, headers, body: Some(body) })
}

/// Bounded, on one line, without the markup that routers put in.
pub(crate) fn one_line(text: &str) -> String {
    let plain = text.replace("<br />", " ");
    let mut line = String::new();
    for word in plain.split(|c: char| c.is_whitespace() || c.is_control()).filter(|w| !w.is_empty())
    {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    if line.chars().count() > MAX_MESSAGE {
        line = line.chars().take(MAX_MESSAGE).collect();
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_bounded_line() {
        let message = one_line(&format!("a\n\tb\u{7}<br /> {}", "x".repeat(9999)));
        assert!(message.starts_with("a b xxx") && message.ends_with('…'), "{message}");
        assert_eq!(message.chars().count(), MAX_MESSAGE + 1);
    }
}
