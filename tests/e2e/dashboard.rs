//! The dashboard, in a headless Chromium, on a platform with real instances.

use std::path::PathBuf;

use longshore_e2e::browser::{Looks, key};
use longshore_e2e::{Browser, Platform, UpOptions, eventually};
use serde_json::{Value, json};

use crate::scene::{busybox, but, script, web, with_web, with_web_on};

/// A platform with an image, at a place on the map.
fn platform() -> Platform {
    let config =
        "location = \"ams\"\ncoordinates = \"52.37, 4.90\"\ngpu = [\"h100:80GiB:2\"]\n".to_owned();
    with_web_on(&UpOptions { config, ..UpOptions::default() })
}

/// A browser that is shown the way by nobody.
fn browser(platform: &Platform, looks: Looks) -> Browser {
    let browser = Browser::start(looks).unwrap();
    browser.open(&platform.endpoints().api).unwrap();
    browser.wait_for("a token is asked for", "document.querySelector('#token')").unwrap();
    browser
}

/// One that is logged in.
fn logged_in(platform: &Platform, looks: Looks) -> Browser {
    let browser = browser(platform, looks);
    log_in(&browser, platform.token());
    browser.wait_for("it is live", "document.querySelector('#live.ok')").unwrap();
    browser
}

fn log_in(browser: &Browser, token: &str) {
    browser.wait_for("the field has the focus", "document.activeElement.id === 'token'").unwrap();
    browser.type_text(token).unwrap();
    browser.press(&[key::ENTER]).unwrap();
}

fn go(browser: &Browser, route: &str) {
    browser.run(&format!("location.hash = {}", json!(route))).unwrap();
}

/// Waits until this text is shown.
fn shows(browser: &Browser, text: &str) {
    let expression = format!("document.body.innerText.includes({})", json!(text));
    browser.wait_for(&format!("{text:?} is shown"), &expression).unwrap();
}

/// Nothing went wrong in the page, and it tried nothing that its policy forbids.
fn check_console(browser: &Browser) {
    assert_eq!(browser.console().unwrap(), Vec::<String>::new());
}

/// Keeps a picture where `LONGSHORE_SCREENSHOTS` says, for people to look at.
fn picture(browser: &Browser, name: &str) {
    if let Some(dir) = std::env::var_os("LONGSHORE_SCREENSHOTS") {
        let path = PathBuf::from(dir).join(format!("{name}.png"));
        std::fs::write(path, browser.screenshot().unwrap()).unwrap();
    }
}

/// Keeps all that a rollout is told by, which must not be by loading the page again.
const NOTE_STEPS: &str = "
    window.isSame = true;
    window.seen = new Set();
    const words = document.querySelector('.rollout-words');
    new MutationObserver(() => window.seen.add(words.textContent))
      .observe(words, { childList: true, characterData: true, subtree: true });";

#[test]
fn a_rollout_and_logs_are_watched_live() {
    let platform = platform();
    platform.deploy(&web("web", 2)).unwrap();
    let browser = logged_in(&platform, Looks::DESKTOP);
    shows(&browser, "2 of 2 ready");
    shows(&browser, "deploy web r1");
    let points = "document.querySelectorAll('.world circle').length === 1";
    browser.wait_for("the location is on the map", points).unwrap();
    picture(&browser, "overview");

    go(&browser, "#/projects/default/apps/web");
    shows(&browser, "2 of 2 instances of r1 ready");
    browser.run(NOTE_STEPS).unwrap();
    platform.push(&busybox(&platform, "two"), "default/web:2").unwrap();
    platform.deploy(&but(web("web", 3), &json!({"image": "default/web:2"}))).unwrap();
    shows(&browser, "3 of 3 instances of r2 ready");
    let seen =
        browser.run("return [...window.seen].filter((text) => text.includes('of r2')).length");
    assert!(seen.unwrap().as_u64().unwrap() > 1, "no step of the rollout was seen");
    let rows = "document.querySelectorAll('[data-row].id').length === 3";
    browser.wait_for("the instances are listed", rows).unwrap();
    shows(&browser, "r2 current");
    picture(&browser, "app");

    platform.push(&busybox(&platform, "three"), "default/web:3").unwrap();
    let tried = json!({"image": "default/web:3", "rollout": {"canary": 1}});
    platform.deploy_only(&but(web("web", 3), &tried)).unwrap();
    shows(&browser, "Canary: 1 of 1 healthy beside r2. It waits for longshore promote.");
    platform.run(&["promote", "web"]).ok();
    shows(&browser, "3 of 3 instances of r3 ready");

    let text = "i=0; while true; do i=$((i+1)); echo line $i; echo warning $i >&2; sleep 0.2; done";
    let mut talk =
        but(script("talk", text), &json!({"priority": 60, "placement": {"latency": "50ms"}}));
    talk["resources"]["gpu"] = json!({"memory": "60GiB"});
    platform.deploy(&talk).unwrap();
    let id = platform.instances("talk").unwrap()[0].id().to_string();
    go(&browser, &format!("#/projects/default/instances/{id}"));
    shows(&browser, "line 5");
    let number = || {
        let last = "[...document.querySelectorAll('.log-text')].at(-1).textContent";
        browser.run(&format!("return Number({last}.split(' ')[1])")).unwrap().as_u64().unwrap()
    };
    let first = number();
    eventually("the log goes on", || Ok((number() > first + 5).then_some(()))).unwrap();
    assert!(
        browser.run("return document.querySelectorAll('.log-line.stderr').length > 0").unwrap()
            == true
    );
    shows(&browser, "Because the only node");
    shows(&browser, "of 32 MiB");
    shows(&browser, "60 GiB of GPU 0");
    picture(&browser, "instance");
    go(&browser, "#/projects/default/apps/talk");
    shows(&browser, "nobody knows yet how many within 50ms, and 95% should be");
    let priority = "[...document.querySelectorAll('dt')].some((one) => \
        one.textContent === 'Priority' && one.nextSibling.textContent === '60')";
    browser.wait_for("its priority is shown", priority).unwrap();
    go(&browser, "#/locations/ams");
    shows(&browser, "2 h100, 60 GiB of 160 GiB promised");

    assert_eq!(browser.run("return window.isSame").unwrap(), true, "the page was loaded again");
    check_console(&browser);
    drop(browser);
    platform.finish();
}

#[test]
fn only_a_token_that_may_look_opens_it_and_logging_out_forgets_it() {
    let platform = platform();
    platform.deploy(&web("web", 1)).unwrap();
    let browser = browser(&platform, Looks::DESKTOP);
    picture(&browser, "login");
    // When a file does not arrive, the page is loaded again until it does.
    let block = |urls: &[&str]| {
        browser.devtools("Network.enable", json!({})).unwrap();
        browser.devtools("Network.setBlockedURLs", json!({"urls": urls})).unwrap();
    };
    block(&["*/views/login.js"]);
    browser.run("location.reload()").unwrap();
    let tries = "Number(sessionStorage.getItem('longshore-boots')) > 1";
    browser.wait_for("it is loaded again and again", tries).unwrap();
    block(&[]);
    browser.wait_for("a token is asked for", "document.querySelector('#token')").unwrap();
    log_in(&browser, "lsh_guessed");
    shows(&browser, "this token is not known here");
    let made: Value =
        platform.run(&["token", "create", "pull", "--pull", "default/*", "--json"]).json();
    log_in(&browser, made["token"].as_str().unwrap());
    shows(&browser, "needs the role read");
    // Refused requests are told in the console, and they are what is wanted here.
    browser.console().unwrap();

    let made: Value = platform.run(&["token", "create", "ui", "--role", "read", "--json"]).json();
    log_in(&browser, made["token"].as_str().unwrap());
    shows(&browser, "1 of 1 ready");
    shows(&browser, "Token ui (read)");
    browser.run("location.reload()").unwrap();
    shows(&browser, "1 of 1 ready");
    let kept = "return JSON.stringify([{...localStorage}, document.cookie, location.href])";
    let kept = browser.run(kept).unwrap().to_string();
    assert!(!kept.contains("lsh_"), "{kept}");
    check_console(&browser);
    browser.run("document.querySelector('#log-out').click()").unwrap();
    browser.wait_for("a token is asked for", "document.querySelector('#token')").unwrap();
    assert_eq!(browser.run("return sessionStorage.length").unwrap(), 0);
    browser.run("location.reload()").unwrap();
    browser.wait_for("a token is asked for again", "document.querySelector('#token')").unwrap();
    assert!(!browser.text().unwrap().contains("web"));

    // A token that is removed ends what is open.
    log_in(&browser, made["token"].as_str().unwrap());
    shows(&browser, "1 of 1 ready");
    platform.run(&["token", "rm", "ui"]).ok();
    shows(&browser, "it may have been removed");
    drop(browser);
    platform.finish();
}

#[test]
fn long_lists_come_page_by_page_and_all_goes_on_after_the_control_plane_was_killed() {
    let platform = with_web();
    let small = json!({"resources": {"memory": "16MiB", "cpu": "0.05", "disk": "16MiB"}});
    platform.deploy(&but(web("many", 55), &small)).unwrap();
    let browser = logged_in(&platform, Looks::DESKTOP);
    shows(&browser, "55 of 55 ready");
    // A location without a place on the map is named beside it.
    shows(&browser, "Without coordinates: local 55/55");
    go(&browser, "#/projects/default/apps/many");
    let rows = |n: u32| format!("document.querySelectorAll('[data-row].id').length === {n}");
    browser.wait_for("a page is listed", &rows(50)).unwrap();
    browser.run("document.querySelector('.more').click()").unwrap();
    browser.wait_for("the rest is listed", &rows(55)).unwrap();
    browser.run("document.querySelector('.more').click(); window.isSame = true").unwrap();
    browser.wait_for("there is no more", "document.querySelector('.more').hidden").unwrap();

    platform.role("global").unwrap().kill().unwrap();
    browser.wait_for("the loss is told", "!document.querySelector('#live.ok')").unwrap();
    browser.wait_for("it is live again", "document.querySelector('#live.ok')").unwrap();
    platform.run(&["scale", "many=3"]).ok();
    shows(&browser, "3 of 3 instances of r1 ready");
    browser.wait_for("those left are listed", &rows(3)).unwrap();
    // What is not there is said so, and nothing else is shown.
    for (route, told) in [
        ("#/projects/default/apps/none", "There is no app none"),
        ("#/projects/default/instances/none-00000000", "There is no instance none-00000000."),
        ("#/locations/none", "there is no location none"),
    ] {
        go(&browser, route);
        shows(&browser, told);
        let body = "document.querySelector('.page-body').hidden";
        browser.wait_for("nothing else is shown", body).unwrap();
    }
    assert_eq!(browser.run("return window.isSame").unwrap(), true, "the page was loaded again");
    drop(browser);
    platform.finish();
}

#[test]
fn hostile_texts_are_shown_and_do_nothing() {
    let platform = platform();
    // In what a program writes, in a name of an image, in a note.
    let attack = "<img src=x onerror=\"window.attacked=1\"><script>window.attacked=1</script>";
    let coloured = "\\033[31mred\\033[0m \\342\\200\\256flipped\\n";
    let text = format!("while true; do echo '{attack}'; printf '{coloured}'; sleep 1; done");
    platform.deploy(&script("talk", &text)).unwrap();
    let broken = but(
        script("broken", "true"),
        &json!({"process": {"command": [attack], "stop_grace": "1s"}}),
    );
    platform.deploy_only(&broken).unwrap();
    let browser = logged_in(&platform, Looks::DESKTOP);
    let id = platform.instances("talk").unwrap()[0].id().to_string();
    go(&browser, &format!("#/projects/default/instances/{id}"));
    shows(&browser, attack);
    shows(&browser, "red");
    let shown = "[...document.querySelectorAll('.log-text')].map((line) => line.textContent)";
    let line = format!("{shown}.includes('red \u{202e}flipped')");
    browser.wait_for("colours of terminals are left out", &line).unwrap();
    go(&browser, "#/projects/default/apps/broken");
    shows(&browser, "onerror");
    for route in [
        "#/projects/default/apps/%3Cimg%20src=x%20onerror=attacked=1%3E",
        "#/projects/%3Cscript%3E/apps",
    ] {
        go(&browser, route);
        browser.wait_for("the route is taken", "document.querySelector('h1')").unwrap();
    }
    let made = "document.querySelectorAll('main img, main script, main iframe').length";
    assert_eq!(browser.run(&format!("return {made}")).unwrap(), 0);
    assert_eq!(browser.run("return window.attacked ?? null").unwrap(), Value::Null);
    // And if the dashboard had a hole, the browser would refuse what comes through.
    let hole =
        "try { document.body.innerHTML = '<b>x</b>'; return 'let in' } catch { return 'refused' }";
    assert_eq!(browser.run(hole).unwrap(), "refused");
    drop(browser);
    platform.finish();
}

#[test]
fn everything_is_reached_by_keys_and_fits_a_phone() {
    let platform = platform();
    for app in ["alpha", "beta"] {
        platform.deploy(&web(app, 1)).unwrap();
    }
    let browser = logged_in(&platform, Looks::PHONE);
    shows(&browser, "beta");
    let at = |what: &str, expression: &str| browser.wait_for(what, expression).unwrap();
    let focus = "document.activeElement.textContent";
    browser.press(&["?"]).unwrap();
    at("help is open", "document.querySelector('#help').open");
    picture(&browser, "phone-help");
    browser.press(&[key::ESCAPE]).unwrap();
    at("help is closed", "!document.querySelector('#help').open");
    browser.press(&["g", "a"]).unwrap();
    at("the apps are shown", "document.querySelector('h1').textContent === 'Apps'");
    browser.press(&["/"]).unwrap();
    at("the filter has the focus", "document.activeElement.matches('.filter')");
    // In a field, the keys are what is written.
    browser.type_text("beta?").unwrap();
    at("nothing matches", "document.body.innerText.includes('No app matches.')");
    browser.press(&[key::ESCAPE, key::ESCAPE, "j"]).unwrap();
    at("the first row has the focus", &format!("{focus} === 'alpha'"));
    browser.press(&["j", "j", "k", "j", key::ENTER]).unwrap();
    at("an app is open", "document.querySelector('h1').textContent === 'beta'");
    at("its instance is listed", "document.querySelector('[data-row].id')");
    browser.press(&["j", key::ENTER]).unwrap();
    at("an instance is open", "location.hash.startsWith('#/projects/default/instances/beta-')");
    at("it is told", "document.querySelector('.facts')?.innerText.includes('ams')");
    // The view is there, and not only its address: a key is meant for what is shown.
    for heading in ["beta", "Apps", "Overview"] {
        browser.press(&[key::ESCAPE]).unwrap();
        at(heading, &format!("document.querySelector('h1').textContent === '{heading}'"));
    }
    at("the way up ends here", "location.hash === '#/projects/default'");

    let routes = [
        "#/projects/default",
        "#/projects/default/apps/beta",
        "#/locations",
        "#/locations/ams",
        "#/events",
    ];
    for (idx, route) in routes.iter().enumerate() {
        go(&browser, route);
        at(route, "document.querySelector('h1') && !document.body.innerText.includes('Loading')");
        let width = browser.run("return document.documentElement.scrollWidth").unwrap();
        assert_eq!(width, 360, "{route} is wider than a phone");
        picture(&browser, &format!("phone-{idx}"));
    }
    browser.run("document.querySelector('.skip').focus()").unwrap();
    browser.press(&[key::ENTER]).unwrap();
    at("the content has the focus", "document.activeElement.id === 'main'");
    at("the view is the same", "location.hash === '#/events'");
    check_console(&browser);
    drop(browser);
    platform.finish();
}
