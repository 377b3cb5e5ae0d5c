use std::collections::BTreeSet;
use std::io::Read as _;
use std::path::{Path as FilePath, PathBuf};

use axum::body::Body;
use base64::Engine as _;
use flate2::read::GzDecoder;
use http::Request;
use http_body_util::BodyExt;
use tower_service::Service;

use super::*;

async fn ask(path: &str, headers: &[(HeaderName, &str)]) -> (StatusCode, HeaderMap, Vec<u8>) {
    let mut request = Request::get(path);
    for (name, value) in headers {
        request = request.header(name, *value);
    }
    let request = request.body(Body::empty()).unwrap();
    let response = router::<()>().with_state(()).call(request).await.unwrap();
    let (parts, body) = response.into_parts();
    (parts.status, parts.headers, body.collect().await.unwrap().to_bytes().to_vec())
}

fn files_below(dir: &FilePath) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}

#[test]
fn no_file_of_the_dashboard_is_forgotten() {
    let root = FilePath::new(env!("CARGO_MANIFEST_DIR")).join("../../dashboard");
    let there: BTreeSet<String> = files_below(&root)
        .iter()
        .map(|path| path.strip_prefix(&root).unwrap().display().to_string())
        .collect();
    let served = FILES.iter().map(|(name, _)| (*name).to_owned());
    assert_eq!(served.chain(["index.html".to_owned()]).collect::<BTreeSet<_>>(), there);
}

#[tokio::test]
async fn every_answer_says_what_a_browser_may_do_with_it() {
    let version = Dashboard::new().version;
    for (path, status) in [
        ("/", 307),
        ("/ui", 307),
        ("/ui/", 200),
        (&format!("/ui/{version}/main.js"), 200),
        (&format!("/ui/{version}/views/app.js"), 200),
        (&format!("/ui/{version}/base.css"), 200),
        (&format!("/ui/{version}/none.js"), 404),
        (&format!("/ui/{version}/../main.js"), 404),
        ("/ui/0000000000000000/main.js", 404),
    ] {
        let (found, headers, _) = ask(path, &[]).await;
        assert_eq!(found, status, "{path}");
        for (name, value) in HEADERS {
            assert_eq!(headers[&name], value, "{path}");
        }
    }
    let directives: Vec<_> = POLICY.split("; ").collect();
    assert!(
        directives.contains(&"default-src 'none'")
            && directives.contains(&"frame-ancestors 'none'")
    );
    assert!(!POLICY.contains("unsafe") && !POLICY.contains('*') && !POLICY.contains("data:"));
}

#[test]
fn the_only_script_in_the_page_is_the_one_that_the_policy_names() {
    let scripts: Vec<&str> = PAGE.split("<script").skip(1).collect();
    let [script] = scripts.as_slice() else { panic!("{} scripts in the page", scripts.len()) };
    let (_, script) = script.split_once('>').unwrap();
    let (script, _) = script.split_once("</script>").unwrap();
    let hash = base64::engine::general_purpose::STANDARD.encode(Sha256::digest(script));
    assert!(POLICY.contains(&format!("script-src 'self' 'sha256-{hash}';")), "{hash}");
}

#[tokio::test]
async fn files_are_kept_for_good_and_the_page_is_looked_at_again() {
    let version = Dashboard::new().version;
    let path = format!("/ui/{version}/main.js");
    let (_, headers, plain) = ask(&path, &[]).await;
    assert_eq!(headers[header::CACHE_CONTROL], FOR_GOOD);
    assert_eq!(headers[header::CONTENT_TYPE], "text/javascript; charset=utf-8");
    assert!(!headers.contains_key(header::CONTENT_ENCODING));
    let accepts = [(header::ACCEPT_ENCODING, "br, gzip;q=0.8")];
    let (_, headers, packed) = ask(&path, &accepts).await;
    assert_eq!(headers[header::CONTENT_ENCODING], "gzip");
    let mut unpacked = Vec::new();
    GzDecoder::new(packed.as_slice()).read_to_end(&mut unpacked).unwrap();
    assert_eq!((unpacked == plain, packed.len() < plain.len()), (true, true));
    let (_, headers, _) = ask(&path, &[(header::ACCEPT_ENCODING, "gzip;q=0, br")]).await;
    assert!(!headers.contains_key(header::CONTENT_ENCODING));

    let (_, headers, page) = ask("/ui/", &[]).await;
    assert_eq!(headers[header::CACHE_CONTROL], "no-cache");
    let tag = headers[header::ETAG].to_str().unwrap();
    let (status, headers, body) = ask("/ui/", &[(header::IF_NONE_MATCH, tag)]).await;
    assert_eq!((status.as_u16(), body.len()), (304, 0));
    assert_eq!(headers[header::ETAG], tag);
    let page = String::from_utf8(page).unwrap();
    assert!(!page.contains("{{"), "{page}");
    assert!(page.contains(&format!("data-main=\"{version}/main.js\"")), "{page}");
}

/// How bright a colour is to the eye, as WCAG defines it.
fn luminance(colour: &str) -> f64 {
    let part = |idx: usize| {
        let value = f64::from(u8::from_str_radix(&colour[idx..idx + 2], 16).unwrap()) / 255.0;
        if value <= 0.040_45 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) }
    };
    0.2126 * part(1) + 0.7152 * part(3) + 0.0722 * part(5)
}

#[test]
fn texts_stand_out_from_what_is_behind_them_in_both_schemes() {
    let (_, css) = FILES.iter().find(|(name, _)| *name == "base.css").unwrap();
    let schemes = css.split(":root {").skip(1).map(|rest| rest.split('}').next().unwrap());
    let mut colours = std::collections::BTreeMap::new();
    for scheme in schemes {
        for line in scheme.lines() {
            let Some((name, value)) = line.trim().split_once(": #") else { continue };
            colours.insert(name.to_owned(), format!("#{}", value.trim_end_matches(';')));
        }
        let contrast = |front: &str, back: &str| {
            let of = |name: &str| luminance(&colours[&format!("--{name}")]);
            let (a, b) = (of(front), of(back));
            (a.max(b) + 0.05) / (a.min(b) + 0.05)
        };
        for front in ["ink", "quiet", "accent", "ok", "busy", "warn", "bad"] {
            for back in ["surface", "ground", "sunken", "log"] {
                assert!(contrast(front, back) >= 4.5, "{front} on {back} in {scheme}");
            }
        }
        assert!(contrast("on-accent", "accent") >= 4.5, "{scheme}");
    }
    assert!(colours.len() > 15, "the colours are not found: {colours:?}");
}
