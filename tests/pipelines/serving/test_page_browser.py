"""The page in Debian's Chromium, on the service with a gallery of coloured pictures (tests/support/served_galleries.py)."""

import base64
import contextlib
import re
import shutil
import threading
import time

import pytest
from served_galleries import TOKEN, encoded, service_on, write_gallery

pytestmark = pytest.mark.browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
RED = encoded((220, 30, 30), (24, 48))


@contextlib.contextmanager
def served(service):
    """Run the service under uvicorn in a thread; gives its address."""
    import uvicorn

    from pipelines.serving.application import application

    server = uvicorn.Server(uvicorn.Config(application(service), host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM:
        pytest.skip("Chromium is not installed: apt install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        opened = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gallery") / "people"
    write_gallery(folder, count=24)
    with served(service_on(folder)) as address:
        yield address


@pytest.fixture
def opened(browser, address):
    """Opens pages of 1280 x 860; none may say an error in the console, nor ask another machine for anything."""
    contexts, errors = [], []

    def new(where="/", *, expect_errors=False, base=address, **settings):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 860}, **settings})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: request.url.startswith((base, "blob:")) or errors.append(request.url))
        if not expect_errors:
            page.on("console", lambda said: said.type == "error" and errors.append(said.text))
        page.goto(base + where)
        return page

    yield new
    for context in contexts:
        context.close()
    assert errors == []


def found(page):
    """The ids of the pictures that are shown, once the search has ended."""
    page.wait_for_selector("#grid:not([aria-busy]) .match")
    return page.eval_on_selector_all("#grid .match", "all => all.map(one => one.dataset.id)")


def until(page, condition):
    """Wait for a condition in JavaScript; Playwright's own way needs `eval`, which the page's policy forbids."""
    for _ in range(200):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    pytest.fail(f"never true: {condition}")


def first_colour(page):
    page.wait_for_selector("#grid:not([aria-busy]) .match")
    return re.search(r"a person in (\w+)", page.get_attribute("#grid img >> nth=0", "alt"))[1]


def asked_api(page, json):
    return page.request.post(re.sub(r"/#.*|/$", "", page.url) + "/api/search", data=json).json()


def test_type_and_find(opened):
    page = opened()
    page.fill("#sentence", "a person in red")
    page.press("#sentence", "Enter")
    matches = asked_api(page, {"sentences": ["a person in red"], "k": 20})["matches"]
    assert found(page) == [match["id"] for match in matches]
    assert page.inner_text("#grid .score >> nth=0") == f"{matches[0]['score']:.3f}"
    assert first_colour(page) == "red"
    assert page.url.endswith("/#q=a+person+in+red")
    assert page.title() == "a person in red – search"
    assert re.match(r"20 best of 24 pictures, \d+ ms", page.inner_text("#status"))
    page.click("#more")
    until(page, "document.querySelectorAll('#grid .match').length === 24")
    assert not page.is_visible("#more")


def test_an_example_is_one_click(opened):
    page = opened()
    text = page.inner_text(".example >> nth=0")
    page.click(".example >> nth=0")
    found(page)
    assert page.input_value("#sentence") == text


def test_a_click_shows_the_picture_large_with_its_words_and_the_persons_other_pictures(opened):
    page = opened("/#q=a+person+in+red")
    ids = found(page)
    page.click("#grid .match >> nth=1")
    page.wait_for_selector(".words li")
    assert page.get_attribute("#large", "src") == f"/api/pictures/{ids[1]}"
    until(page, "document.querySelector('#large').naturalWidth === 12")
    words = page.eval_on_selector_all(".words li", "all => all.map(one => one.innerText.split(/\\s+/))")
    assert [word for word, _ in words] == ["a", "person", "in", "red"]
    assert words[3][1] == "+1.00"
    colours = page.eval_on_selector_all(".words .word", "all => all.map(one => getComputedStyle(one).backgroundColor)")
    assert colours[3] != colours[0]
    page.wait_for_selector("#related .match")
    person = re.search(r"person\s(\d)", page.inner_text("#viewer-title"))[1]
    assert page.inner_text("#related-title") == "Other pictures of this person"
    others = page.eval_on_selector_all("#related img", "all => all.map(one => one.alt)")
    assert others
    assert all(f"of person {person}:" in alt for alt in others)
    page.click("#related .match >> nth=0")
    until(page, f"document.querySelector('#large').src.indexOf('{ids[1]}') < 0")
    page.go_back()
    until(page, f"document.querySelector('#large').src.indexOf('{ids[1]}') > 0")
    page.go_back()
    page.wait_for_selector("#viewer:not([open])", state="attached")
    assert page.url.endswith("/#q=a+person+in+red")


def test_pictures_of_nobody_known_have_the_nearest_ones(opened):
    page = opened("/#q=white&where=caption~number+23")
    found(page)
    page.click("#grid .match")
    page.wait_for_selector("#related .match")
    assert page.inner_text("#related-title") == "The nearest pictures"


def test_everything_by_keyboard(opened):
    page = opened("/#q=blue")
    ids = found(page)
    page.keyboard.press("/")
    page.keyboard.type("a person in green")  # what was there is selected
    page.keyboard.press("Enter")
    until(page, f"document.querySelector('#grid .match')?.dataset.id !== '{ids[0]}'")
    ids = found(page)
    focused = "document.activeElement.dataset.id ?? document.activeElement.id"
    page.keyboard.press("ArrowDown")
    assert page.evaluate(focused) == ids[0]
    page.keyboard.press("ArrowRight")
    assert page.evaluate(focused) == ids[1]
    columns = page.evaluate("getComputedStyle(document.querySelector('#grid')).gridTemplateColumns.split(' ').length")
    page.keyboard.press("ArrowDown")
    assert page.evaluate(focused) == ids[1 + columns]
    ring = "(({outlineStyle, outlineWidth}) => outlineStyle + outlineWidth)(getComputedStyle(document.activeElement))"
    assert page.evaluate(ring) == "solid3px"
    page.keyboard.press("Enter")
    page.wait_for_selector("#viewer[open]")
    page.wait_for_selector("#related .match")
    page.keyboard.press("ArrowRight")
    until(page, f"document.querySelector('#large').src.endsWith('{ids[2 + columns]}')")
    page.wait_for_selector("#related .match")
    for key in ["Tab"] * 12 + ["Shift+Tab"] * 14:
        page.keyboard.press(key)
        assert page.evaluate("document.querySelector('#viewer').contains(document.activeElement)")
    page.keyboard.press("Escape")
    page.wait_for_selector("#viewer:not([open])", state="attached")
    assert page.evaluate(focused) == ids[2 + columns]
    page.keyboard.press("Home")
    page.keyboard.press("ArrowUp")
    assert page.evaluate(focused) == "sentence"
    page.keyboard.press("Escape")
    assert page.input_value("#sentence") == ""


GIVE = """([name, kind, bytes, type]) => {
  const given = new DataTransfer();
  given.items.add(new File([Uint8Array.from(atob(bytes), c => c.charCodeAt(0))], name, {type: kind}));
  const init = {bubbles: true, cancelable: true};
  const event = type === 'paste'
    ? new ClipboardEvent(type, {...init, clipboardData: given}) : new DragEvent(type, {...init, dataTransfer: given});
  document.body.dispatchEvent(event);
}"""


@pytest.mark.parametrize("how", ["drop", "paste", "choose"])
def test_a_picture_is_searched_by(opened, how):
    page = opened("/#q=blue")
    assert first_colour(page) == "blue"
    page.fill("#sentence", "")
    if how == "choose":
        page.set_input_files("#file", {"name": "seen.png", "mimeType": "image/png", "buffer": RED})
    else:
        given = ["seen.png", "image/png", base64.b64encode(RED).decode(), how]
        if how == "drop":
            page.evaluate(GIVE, [*given[:3], "dragover"])
            assert page.is_visible("#drop")
        page.evaluate(GIVE, given)
    until(page, "document.querySelector('#grid img')?.alt.includes('in red')")
    assert not page.is_visible("#drop")
    assert page.inner_text("#given-name") == "seen.png"
    assert page.evaluate("document.querySelector('#given-picture').naturalWidth") == 24
    page.go_back()
    until(page, "document.querySelector('#grid img')?.alt.includes('in blue')")
    assert not page.is_visible("#given")
    page.go_forward()
    until(page, "document.querySelector('#grid img')?.alt.includes('in red')")
    page.reload()
    page.wait_for_selector("text=Your own picture was not kept")
    page.set_input_files("#file", {"name": "seen.png", "mimeType": "image/png", "buffer": RED})
    page.wait_for_selector("#grid .match")
    assert not page.is_visible("#lost")
    page.click("#given-remove")
    page.wait_for_selector(".example")
    assert not page.is_visible("#lost")


def test_a_picture_and_a_sentence_are_searched_by_together(opened):
    page = opened()
    page.fill("#sentence", "blue")
    page.set_input_files("#file", {"name": "seen.png", "mimeType": "image/png", "buffer": RED})
    both = found(page)
    page.click("#given-remove")
    until(page, f"document.querySelector('#grid .match')?.dataset.id !== '{both[0]}'")
    assert page.input_value("#sentence") == "blue"


def test_what_is_no_picture_is_refused_before_it_is_sent_or_by_the_service(opened, tmp_path):
    page = opened(expect_errors=True)
    page.set_input_files("#file", {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"no picture"})
    assert "notes.txt is not a picture" in page.inner_text("#message")
    (tmp_path / "huge.png").write_bytes(b"0" * 17_000_000)
    page.set_input_files("#file", tmp_path / "huge.png")
    assert "It has 16.2 MB; the service takes 16.0 MB." in page.inner_text("#message")
    page.set_input_files("#file", {"name": "broken.png", "mimeType": "image/png", "buffer": b"no picture"})
    page.wait_for_selector("text=This query was not accepted")


def test_a_picture_of_the_gallery_is_searched_by(opened):
    page = opened("/#q=red")
    ids = found(page)
    page.click("#grid .match >> nth=2")
    page.click("#like-this")
    page.wait_for_url(f"**/#like={ids[2]}")
    assert ids[2] not in found(page)  # others like it are
    assert first_colour(page) == "red"
    assert page.inner_text("#given-name") == "like this one"


def test_filters_come_from_the_columns_and_are_in_the_address(opened):
    page = opened("/#q=red")
    found(page)
    page.click("#filters summary")
    names = page.eval_on_selector_all(".control legend", "all => all.map(one => one.innerText)")
    assert {"camera", "identity"} <= set(names)
    page.select_option("select[aria-label=camera]", "1")
    page.wait_for_selector("#chips li")
    assert page.url.endswith("#q=red&where=camera%3D1")
    until(page, "document.querySelectorAll('#grid .match').length === 8")
    page.select_option("select[aria-label='seen: how it compares']", ">=")
    page.fill("input[aria-label=seen]", "1000")
    page.press("input[aria-label=seen]", "Enter")
    page.wait_for_selector("text=No picture fits these filters")
    assert "None of 24 pictures that fit 2 filters" in page.inner_text("#status")
    page.click("[aria-label='Remove the filter seen at least 1000']")
    until(page, "document.querySelectorAll('#grid .match').length === 8")
    page.reload()
    until(page, "document.querySelectorAll('#grid .match').length === 8")


def test_a_link_shows_the_same_to_somebody_else_and_back_and_forward_work(opened):
    page = opened("/#q=red&k=5&where=camera%3D0&rerank=1")
    ids = found(page)
    assert len(ids) == 5
    assert page.is_checked("#rerank")
    page.click("#grid .match >> nth=3")
    page.wait_for_selector("#viewer[open]")
    link = page.url
    other = opened(link[link.index("/#") :])
    other.wait_for_selector("#viewer[open]")
    assert other.inner_text("#viewer-title") == page.inner_text("#viewer-title")
    assert other.input_value("#sentence") == "red"
    other.click("#close")
    other.wait_for_selector("#viewer:not([open])", state="attached")
    assert found(other) == ids
    page.keyboard.press("Escape")
    page.wait_for_selector("#viewer:not([open])", state="attached")
    page.go_forward()  # closing went back
    page.wait_for_selector("#viewer[open]")
    page.keyboard.press("Escape")
    page.wait_for_selector("#viewer:not([open])", state="attached")
    page.fill("#sentence", "green")
    page.click("#go")
    until(page, "document.querySelector('#grid img')?.alt.includes('in green')")
    page.go_back()
    until(page, "document.querySelector('#grid img')?.alt.includes('in red')")
    assert page.input_value("#sentence") == "red"
    page.go_back()


def test_a_query_is_text_whatever_it_holds_and_is_not_in_what_the_server_is_asked_for(opened):
    text = "red <img src=x onerror=alert(1)> <b>bold</b> &amp; \"'"
    page = opened()
    pages = []
    page.on("request", lambda request: pages.append(request.url))
    page.fill("#sentence", text)
    page.press("#sentence", "Enter")
    found(page)
    page.click("#grid .match >> nth=0")
    page.wait_for_selector(".words li")
    assert page.inner_text(".words li:nth-child(2) .word") == "<img"
    assert not page.query_selector("#viewer b")
    page.reload()
    page.wait_for_selector("#viewer[open]")
    assert pages
    assert not any("onerror" in url for url in pages)


def test_lines_are_several_sentences(opened):
    page = opened()
    page.fill("#sentence", "a red person")
    page.press("#sentence", "Shift+Enter")
    page.keyboard.type("somebody in red")
    page.press("#sentence", "Enter")
    found(page)
    assert page.url.endswith("#q=a+red+person&q=somebody+in+red")
    page.click("#grid .match >> nth=0")
    page.wait_for_selector(".words >> nth=1")


def test_the_end_that_the_model_does_not_read_is_said(opened):
    page = opened("/#q=" + "+".join(["red"] * 20) + "+never+read")
    found(page)
    assert "Not read: “never read”" in page.inner_text("#unread")
    page.click("#grid .match >> nth=0")
    page.wait_for_selector(".words li")
    assert page.inner_text(".words li:last-child") == "read\nnot read"


def test_a_token_is_asked_for_and_kept_where_no_script_reads_it(opened, tmp_path):
    write_gallery(tmp_path / "people")
    with served(service_on(tmp_path / "people", token=TOKEN)) as base:
        page = opened("/#q=red", base=base, expect_errors=True)
        page.wait_for_selector("text=This gallery needs a token")
        page.fill("#token", "not it")
        page.press("#token", "Enter")
        page.wait_for_selector("text=This token was not accepted")
        page.fill("#token", TOKEN)
        page.press("#token", "Enter")
        assert first_colour(page) == "red"
        until(page, "document.querySelector('#grid img').naturalWidth > 0")
        assert TOKEN not in page.url
        assert page.evaluate("document.cookie") == ""
        page.context.close()


def answering(page, **answer):
    page.route("**/api/search", lambda route: route.fulfill(**answer))


def test_a_busy_service_is_asked_again_by_itself(opened):
    page = opened(expect_errors=True)
    answering(page, status=429, json={"error": "too many searches"}, headers={"Retry-After": "2"})
    page.fill("#sentence", "red")
    page.press("#sentence", "Enter")
    page.wait_for_selector("text=The page asks again in 2 s.")
    assert "too many searches" in page.inner_text("#message")
    page.unroute("**/api/search")
    assert first_colour(page) == "red"
    assert not page.is_visible("#message")


def test_a_service_that_is_gone_is_said_and_found_again(opened):
    page = opened(expect_errors=True)
    page.context.set_offline(True)
    page.fill("#sentence", "red")
    page.press("#sentence", "Enter")
    page.wait_for_selector("text=The service cannot be reached")
    page.context.set_offline(False)  # the browser says so to the page
    assert first_colour(page) == "red"


@pytest.mark.parametrize(
    ("link", "title", "said"),
    [
        ("/#q=red&where=colour%3Dred", "This query was not accepted", "camera"),
        ("/#q=" + "x" * 3000, "This query was not accepted", "1000"),
        ("/#like=0123456789abcdef", "This picture is not in the gallery", "no picture"),
        ("/#q=red&k=100000", "This query was not accepted", "k"),
    ],
)
def test_what_the_service_refuses_is_shown_in_its_own_words(opened, link, title, said):
    page = opened(link, expect_errors=True)
    page.wait_for_selector(f"#message h2:text-is('{title}')")
    assert said in page.inner_text("#message .said")


def test_a_failure_is_shown_with_a_button_that_tries_again(opened):
    page = opened(expect_errors=True)
    answering(page, status=500, body="no JSON")
    page.fill("#sentence", "red")
    page.press("#sentence", "Enter")
    page.wait_for_selector("text=Something went wrong in the service")
    page.unroute("**/api/search")
    page.click("text=Try again")
    assert first_colour(page) == "red"


def test_the_answer_to_an_older_query_never_replaces_a_newer_one(opened):
    page = opened()
    held, older = [], asked_api(page, {"sentences": ["green"]})
    page.route("**/api/search", lambda route: held.append(route) if not held else route.continue_())
    page.fill("#sentence", "green")
    page.press("#sentence", "Enter")
    page.wait_for_selector("#grid.empty")
    page.fill("#sentence", "red")
    page.press("#sentence", "Enter")
    assert first_colour(page) == "red"
    with contextlib.suppress(Exception):  # the page has given it up
        held[0].fulfill(json=older)
    page.wait_for_timeout(500)
    assert first_colour(page) == "red"


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_screen_and_both_schemes_are_used(opened, width, scheme):
    page = opened(color_scheme=scheme, viewport={"width": width, "height": 800}, has_touch=width < 500)
    wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    page.wait_for_selector(".example")
    assert page.evaluate(wide) == 0
    page.goto(page.url.rstrip("/") + "/#q=a+person+in+red&where=camera%3D1&where=caption~person")
    found(page)
    page.click("#filters summary")
    assert page.evaluate(wide) == 0
    page.click("#grid .match >> nth=0")
    page.wait_for_selector("#related .match")
    assert page.evaluate(
        "document.querySelector('.viewer-body').scrollWidth <= document.querySelector('.viewer-body').clientWidth"
    )
    red = int(re.search(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))[0])
    assert (red < 60) == (scheme == "dark")
    targets = page.eval_on_selector_all(".viewer-bar button", "all => all.map(one => one.offsetHeight)")
    assert min(targets) >= (44 if width < 500 else 40)


def test_pictures_are_loaded_when_they_are_near_and_described(opened):
    page = opened("/#q=red")
    found(page)
    tags = page.eval_on_selector_all("#grid img", "all => all.map(one => [one.loading, one.alt])")
    assert {loading for loading, _ in tags} == {"lazy"}
    assert all(re.match(r"Picture \d+( of person \d)?: a person in", alt) for _, alt in tags)


def test_nothing_moves_for_those_who_asked_for_it(opened):
    page = opened(reduced_motion="reduce")
    page.route("**/api/search", lambda route: None)
    page.fill("#sentence", "red")
    page.press("#sentence", "Enter")
    page.wait_for_selector("#grid.empty .frame")
    assert page.evaluate("getComputedStyle(document.querySelector('.empty .frame')).animationName") == "none"
