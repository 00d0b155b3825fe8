//! Whether an answer is what was asked for.
//!
//! A proxy that answers `<html>busy</html>` with 200, or a store that answers `<Error>` with 200, did not answer the
//! request. The library's parsers take what they do not know for nothing: such a list would be empty, and anyone who
//! believed it would delete what it does not show. So the body of each answer in XML must be the document that was
//! asked for, from its first element to its end, before the library sees it.

use hyper::Method;
use object_store::client::HttpRequest;

/// The element that the answer to a request must consist of; none if its body is not XML, or the library looks itself.
pub(super) fn expected(request: &HttpRequest) -> &'static [&'static str] {
    let query = request.uri().query().unwrap_or_default();
    let has = |wanted: &[&str]| query.split('&').any(|part| wanted.contains(&part));
    match *request.method() {
        Method::GET if has(&["list-type=2"]) => &["ListBucketResult"],
        Method::GET if has(&["comp=list"]) => &["EnumerationResults"],
        Method::POST if has(&["delete", "delete="]) => &["DeleteResult"],
        Method::POST if has(&["uploads", "uploads="]) => &["InitiateMultipartUploadResult"],
        _ => &[],
    }
}

/// Why a body is not such a document; `None` if it is.
pub(super) fn not_expected(body: &[u8], roots: &[&str]) -> Option<String> {
    let text = String::from_utf8_lossy(body);
    let text = text.trim_start_matches('\u{feff}').trim();
    let Some(root) = root(text) else {
        let begins = text.split_whitespace().take(8).collect::<Vec<_>>().join(" ");
        return Some(format!("no {} but {:?}", roots.join(" or "), short(&begins)));
    };
    if !roots.contains(&root) {
        let code = super::permanent_error::between(text, "<Code>", "</Code>").unwrap_or_default();
        return Some(format!(
            "<{}> {} instead of <{}>",
            short(root),
            short(code),
            roots.join("> or <")
        ));
    }
    // One that was cut off in the middle of an element's text would be well-formed for a lenient parser.
    let ends = text.ends_with("/>") || text.ends_with(&format!("{root}>"));
    (!ends).then(|| format!("<{root}> without an end"))
}

/// The name of the first element, without its namespace.
fn root(text: &str) -> Option<&str> {
    let mut rest = text;
    loop {
        rest = rest.trim_start().strip_prefix('<')?;
        let skipped = match rest.as_bytes().first()? {
            b'?' => "?>",
            b'!' if rest.starts_with("!--") => "-->",
            b'!' => ">",
            _ => break,
        };
        rest = &rest[rest.find(skipped)? + skipped.len()..];
    }
    let end = rest.find(|c: char| c.is_whitespace() || c == '>' || c == '/')?;
    let name = &rest[..end];
    Some(name.rsplit(':').next().unwrap_or(name))
}

fn short(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(120).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::Request;
    use object_store::client::HttpRequestBody;

    #[test]
    fn only_the_document_that_was_asked_for_is_one() {
        let lists = ["ListBucketResult", "EnumerationResults"];
        for fine in [
            "<ListBucketResult/>",
            "<?xml version=\"1.0\"?>\n<!-- x -->\n<ListBucketResult xmlns=\"a\"><Name>b</Name></ListBucketResult>\n",
            "\u{feff}<?xml version=\"1.0\"?><EnumerationResults a=\"b\"></EnumerationResults>",
            "<s3:ListBucketResult></s3:ListBucketResult>",
        ] {
            assert_eq!(not_expected(fine.as_bytes(), &lists), None, "{fine}");
        }
        for wrong in [
            "",
            "busy",
            "<html>busy</html>",
            "<!DOCTYPE html><html><ListBucketResult/></html>",
            "<?xml version=\"1.0\"?><Error><Code>SlowDown</Code></Error>",
            "{\"objects\":[]}",
            "<ListBucketResult><Contents><Key>a</Key>",
            "<ListBucketResult",
            "<?xml",
        ] {
            assert!(not_expected(wrong.as_bytes(), &lists).is_some(), "{wrong}");
        }
        let error = not_expected(b"<Error><Code>SlowDown</Code></Error>", &lists).unwrap();
        assert!(error.contains("SlowDown"), "{error}");
    }

    #[test]
    fn what_requests_ask_for() {
        let of = |method: Method, query: &str| {
            let uri = format!("http://h/b?{query}");
            let request = Request::builder().method(method).uri(uri);
            expected(&request.body(HttpRequestBody::empty()).unwrap())
        };
        assert_eq!(of(Method::GET, "list-type=2&prefix=x"), ["ListBucketResult"]);
        assert_eq!(of(Method::GET, "restype=container&comp=list"), ["EnumerationResults"]);
        assert_eq!(of(Method::POST, "delete"), ["DeleteResult"]);
        assert_eq!(of(Method::POST, "uploads="), ["InitiateMultipartUploadResult"]);
        for (method, query) in
            [(Method::GET, "versions"), (Method::PUT, "list-type=2"), (Method::POST, "uploadId=1")]
        {
            assert!(of(method, query).is_empty(), "{query}");
        }
    }
}
