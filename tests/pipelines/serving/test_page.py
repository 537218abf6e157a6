"""The page's files, as they are: what a browser would do with them is in test_page_browser.py."""

import re
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import pytest
from served_galleries import TOKEN, client_of, service_on, write_gallery

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "pipelines" / "serving" / "page"
SCRIPTS = {file.name: file.read_text(encoding="utf-8") for file in FOLDER.glob("*.js")}
HTML = (FOLDER / "index.html").read_text(encoding="utf-8")
STYLE = (FOLDER / "page.css").read_text(encoding="utf-8")
VOID = {"meta", "link", "input", "img", "path", "rect", "circle", "br"}


class Elements(HTMLParser):
    """Every element: its name, attributes, the labels around it, and all text inside it."""

    def __init__(self):
        super().__init__()
        self.all, self.open = [], []
        self.feed(HTML)
        assert not self.open, f"not closed: {[element['name'] for element in self.open]}"

    def handle_starttag(self, name, attributes):
        element = {"name": name, "text": "", "inside": [other["name"] for other in self.open], **dict(attributes)}
        self.all.append(element)
        if name not in VOID:
            self.open.append(element)

    def handle_endtag(self, name):
        if name not in VOID:
            assert self.open.pop()["name"] == name

    def handle_data(self, text):
        for element in self.open:
            element["text"] += text.strip()

    def named(self, *names):
        return [element for element in self.all if element["name"] in names]


@pytest.fixture(scope="module")
def page():
    return Elements()


@pytest.fixture(scope="module")
def ids(page):
    return [element["id"] for element in page.all if "id" in element]


def test_every_id_that_something_refers_to_exists_once(page, ids):
    assert len(ids) == len(set(ids))
    used = {
        element[key] for element in page.all for key in ("for", "aria-labelledby", "aria-describedby") if key in element
    }
    used |= {element["href"][1:] for element in page.all if element.get("href", "").startswith("#")}
    used |= {name for script in SCRIPTS.values() for name in re.findall(r'\$\("([^"]+)"\)', script)}
    assert used
    assert used <= set(ids)


def test_everything_has_a_name_for_those_who_do_not_see_it(page):
    labelled = {element.get("for") for element in page.named("label") if element["text"]}
    for element in page.named("input", "textarea", "select"):
        assert element.get("aria-label") or element["id"] in labelled or "label" in element["inside"], element
    for element in page.named("button", "summary", "a"):
        assert element.get("aria-label") or element["text"] or element["id"] == "viewer-title", element
    assert all("alt" in element for element in page.named("img"))
    assert all(element.get("aria-hidden") == "true" for element in page.named("svg"))
    assert [element["text"] for element in page.named("h1")] == ["Find a person by a sentence"]
    assert page.named("html")[0]["lang"] == "en"
    assert page.named("main")
    assert any(element.get("role") == "status" for element in page.all)


def test_the_page_works_under_a_policy_that_allows_nothing_inline_and_nothing_from_elsewhere(page):
    for element in page.all:
        assert not [key for key in element if key == "style" or key.startswith("on")], element
        for key in ("src", "href"):
            assert re.fullmatch(r"/|#[\w-]+|/static/[\w.]+", element.get(key, "/")), element
    assert not page.named("style")
    assert all(element["text"] == "" and element["type"] == "module" for element in page.named("script"))
    for text in (HTML, STYLE, *SCRIPTS.values()):
        assert not re.search(r"https?://|url\(|@import", text)
    svg = (FOLDER / "icon.svg").read_text()
    assert re.findall(r"https?://[^\"]+", svg) == ["http://www.w3.org/2000/svg"]


def test_what_comes_from_elsewhere_is_never_read_as_html_or_code():
    for text in SCRIPTS.values():
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|DOMParser", text
        )


def test_every_file_is_used_and_every_file_that_is_used_exists_and_is_installed(page):
    named = {
        Path(element[key]).name for element in page.all for key in ("src", "href") if "/static/" in element.get(key, "")
    }
    found: set[str] = set()
    while named - found:
        name = min(named - found)
        found.add(name)
        named |= set(re.findall(r'from "\./([\w.]+)"', SCRIPTS.get(name, "")))
    assert found | {"index.html"} == {file.name for file in FOLDER.iterdir() if file.is_file()}
    installed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert installed["pipelines.serving"] == ["page/*"]


def colours(scheme):
    """The variables of the light or the dark scheme, as (red, green, blue) in 0..255."""
    light, dark = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
    text = light if scheme == "light" else light + dark
    return {
        name: tuple(int(value[at : at + 2], 16) for at in (0, 2, 4))
        for name, value in re.findall(r"--([\w-]+): #([0-9a-f]{6});", text)
    }


def contrast(one, other):
    """The ratio of WCAG 2.2."""

    def luminance(colour):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (part / 255 for part in colour)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_the_contrast_of_known_pairs():
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    assert contrast((119, 119, 119), (255, 255, 255)) == pytest.approx(4.48, abs=0.005)


TEXTS = [
    *[(text, ground) for text in ("ink", "dim", "accent") for ground in ("paper", "card")],
    *[
        ("ink", "rail"),
        ("dim", "rail"),
        ("bad", "bad-bg"),
        ("on-accent", "accent"),
        ("ink", "heat"),
        ("ink", "against"),
    ],
]
EDGES = [*[(line, ground) for line in ("edge", "accent") for ground in ("paper", "card")], ("bad", "card")]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrasts_are_those_of_wcag_aa(scheme):
    have = colours(scheme)
    weak = {pair: round(contrast(have[pair[0]], have[pair[1]]), 2) for pair in TEXTS}
    assert {pair: ratio for pair, ratio in weak.items() if ratio < 4.5} == {}
    weak = {pair: round(contrast(have[pair[0]], have[pair[1]]), 2) for pair in EDGES}  # what shows where a control is
    assert {pair: ratio for pair, ratio in weak.items() if ratio < 3} == {}
    for tint in ("heat", "against"):  # a word of any weight
        for part in range(11):
            mixed = tuple(a * part / 10 + b * (1 - part / 10) for a, b in zip(have[tint], have["card"], strict=True))
            assert contrast(have["ink"], mixed) >= 4.5


def test_every_colour_of_the_style_is_a_variable_that_both_schemes_have():
    light, dark = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
    names = [set(re.findall(r"--([\w-]+):", text)) for text in (light, dark)]
    assert names[0] - names[1] == {"serif"}
    rest = STYLE.replace(light, "").replace(dark, "")
    assert not re.search(r"#[0-9a-f]{3,8}\b(?![\w-]* \{)|rgba?\(", re.sub(r"#[a-z][\w-]*", "", rest))
    used = set(re.findall(r"var\(--([\w-]+)", rest))
    assert used - names[0] == {"shape", "size"}  # set by scripts


def test_what_moves_stands_still_for_those_who_asked_for_it():
    reduced = STYLE.partition("(prefers-reduced-motion: reduce)")[2]
    assert "animation: none !important" in reduced
    assert "transition: none !important" in reduced


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gallery") / "people"
    write_gallery(folder)
    with client_of(service_on(folder, token=TOKEN)) as client:
        yield client


def test_the_service_gives_the_page_without_a_token_under_a_policy_that_it_keeps_to(client):
    for name in [file.name for file in FOLDER.iterdir()]:
        answer = client.get("/" if name == "index.html" else f"/static/{name}")
        assert answer.content == (FOLDER / name).read_bytes()
        policy = dict(part.strip().partition(" ")[::2] for part in answer.headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'self'"
        assert policy["img-src"] == "'self' blob:"
        assert not any("unsafe" in value for value in policy.values())
    assert client.get("/api/gallery").status_code == 401


def test_every_path_that_the_scripts_ask_for_is_one_of_the_service(client):
    text = (
        SCRIPTS["api.js"]
        .replace("${encodeURIComponent(id)}", "{id}")
        .replace("${picturePath(id)}", "/api/pictures/{id}")
    )
    asked = {path.partition("?")[0] for path in re.findall(r'["`](/api/[\w/{}?=]+)', text)}
    known = client.get("/openapi.json", headers={"Authorization": f"Bearer {TOKEN}"}).json()["paths"]
    assert len(asked) >= 6
    assert asked <= set(known)
    assert not any("fetch(" in text for name, text in SCRIPTS.items() if name != "api.js")
