"""The report, in a browser: it loads offline without a complaint, and hover, sliders and switches do what they say."""

import json
import shutil
from dataclasses import replace
from functools import cache

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from edgeprune.ablation import Ablator
from edgeprune.cli.main import main
from edgeprune.files.store import SavedCircuit, save_circuit
from edgeprune.graph import Circuit, Edge, Graph
from edgeprune.masks import mask_of
from edgeprune.pictures import page as circuit_page
from tracr_bridge.compile.catalogue import load_program
from tracr_bridge.compile.compile import compile_program
from tracr_bridge.recovery.page import _view, write_page
from tracr_bridge.recovery.recover import recover_under

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--window-size=1400,1000",
)  # fmt: skip

in_browser = pytest.mark.skipif(
    not CHROMIUM or not DRIVER, reason="needs Chromium and its driver: apt-get install chromium chromium-driver"
)


@pytest.fixture(scope="module")
def recoveries():
    """Those of a method: one that trains, under two ablations, and one that keeps too much."""
    asked = {"edge-pruning-minimax": ("hist", ["zero", "resample"]), "random": ("reverse", ["zero"])}
    return cache(lambda method: recover_under(load_program(asked[method][0]), asked[method][1], method=method))


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    for option in OPTIONS:
        options.add_argument(option)
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser, recoveries, tmp_path):
    """Open the report of a method's recoveries."""

    def opened(method):
        write_page(recoveries(method), tmp_path / "report.html")
        browser.get((tmp_path / "report.html").as_uri())
        assert browser.get_log("browser") == []
        return browser

    return opened


def drawn(browser, kind):
    return len(browser.find_elements(By.CSS_SELECTOR, f"#circuit .line.{kind}"))


def text(browser, name):
    return browser.find_element(By.ID, name).text


def test_a_slider_over_signed_scores_goes_by_their_size():
    (found,) = recover_under(load_program("xproportion"), ["resample"], method="eap")
    turned = replace(found, discovery=replace(found.discovery, scores=-found.discovery.scores))
    one, other = (_view(each, {}) for each in (found, turned))
    assert one["signed"] and min(other["scores"]) < 0 < max(one["scores"])
    assert other["thresholds"] == one["thresholds"] and other["cut"] == one["cut"]
    assert other["scores"] == [-score for score in one["scores"]]


@in_browser
@pytest.mark.sweep
def test_what_was_found_is_drawn_and_said(opened, recoveries):
    browser, (found, _) = opened("edge-pruning-minimax"), recoveries("edge-pruning-minimax")
    edges = len(found.assessment.reference)
    assert (drawn(browser, "true"), drawn(browser, "missing"), drawn(browser, "extra")) == (edges, 0, 0)
    assert text(browser, "verdict") == f"found by edge-pruning-minimax, seed 0: {edges} edges, exactly a true circuit"
    rows = browser.find_elements(By.CSS_SELECTOR, "section:not([hidden]) tr[data-edge]")
    assert {row.text.split()[0] for row in rows} == set(found.assessment.reference.names())
    assert "all true circuits were enumerated, and there is one" in browser.page_source


@in_browser
@pytest.mark.sweep
def test_missing_and_extra_edges_are_told_apart_by_their_dashes(opened, recoveries):
    browser, (found,) = opened("random"), recoveries("random")
    comparison = found.assessment.comparison
    assert (drawn(browser, "missing"), drawn(browser, "extra")) == (len(comparison.missing), len(comparison.extra))
    assert comparison.missing and comparison.extra
    assert f"{len(comparison.missing)} missing, {len(comparison.extra)} extra" in text(browser, "verdict")
    dashes = {
        kind: browser.find_element(By.CSS_SELECTOR, f".legend .{kind}").value_of_css_property("stroke-dasharray")
        for kind in ("true", "missing", "extra")
    }
    assert len(set(dashes.values())) == 3
    assert not browser.find_element(By.ID, "step").is_displayed()  # nothing was trained


@in_browser
@pytest.mark.sweep
def test_pointing_at_an_edge_or_a_node_says_what_it_is(opened, recoveries):
    browser, (found, _) = opened("edge-pruning-minimax"), recoveries("edge-pruning-minimax")
    name = found.assessment.reference.names()[0]
    row = browser.find_element(By.CSS_SELECTOR, f"section:not([hidden]) tr[data-edge='{name}']")
    webdriver.ActionChains(browser).move_to_element(row).perform()
    said = text(browser, "about").splitlines()
    assert said[:2] == [name, "true, and kept"]
    assert said[2] == f"effect: without it the true circuit is off by {significant(off_by(found, name))}"
    position = found.assessment.found.graph.position(Edge.parse(name))
    assert said[3:] == [f"score: {significant(float(found.discovery.scores[position]))}"]
    assert len(browser.find_elements(By.CSS_SELECTOR, "#circuit.shown .line.on")) == 1
    edge = browser.find_element(By.CSS_SELECTOR, f"#circuit .hit[aria-label='{name}']")
    browser.execute_script("arguments[0].dispatchEvent(new MouseEvent('mouseenter'))", edge)
    assert text(browser, "about").startswith(name)
    node = browser.find_element(By.CSS_SELECTOR, "#circuit .node[aria-label='logits']")
    webdriver.ActionChains(browser).move_to_element(node).perform()
    assert text(browser, "about").startswith("logits\nreads 1, writes to 0")
    webdriver.ActionChains(browser).move_to_element(browser.find_element(By.TAG_NAME, "h1")).perform()
    assert text(browser, "about").startswith("Point at")


def significant(value: float) -> str:
    """Three digits, as the page writes them."""
    assert value == 0 or 1e-3 <= abs(value) < 1e21
    return f"{float(f'{value:.3g}'):.15g}"


def off_by(recovery, name: str, *, among: str = "reference") -> float:
    """How far outputs are from the full model's without an edge, over the whole domain, pair by pair."""
    assessment, edge = recovery.assessment, Edge.parse(name)
    edges = assessment.found.graph.edges if among == "model" else getattr(assessment, among).edges
    compiled = compile_program(load_program(recovery.name))
    clean, corrupted = compiled.dataset.pairs()
    batch = compiled.dataset.take(clean, corrupted)
    ablated = Ablator(compiled.model, compiled.dataset, assessment.found.ablation)(batch)
    outputs = compiled.model(batch.clean, mask_of(assessment.found.graph, {*edges} - {edge}), ablated)
    return float((outputs - batch.target).abs().amax(-1)[batch.scored].max())


@in_browser
@pytest.mark.sweep
def test_every_edge_says_its_effect_its_score_and_its_log_alpha(opened, recoveries):
    browser, (found,) = opened("random"), recoveries("random")
    comparison, structural = found.assessment.comparison, found.assessment.truth.structural
    graph = found.assessment.found.graph
    idle = {edge for edge in comparison.extra if edge not in structural}
    other = structural - found.assessment.found.edges - found.assessment.reference.edges
    for edges, among, what in (
        (comparison.missing, "reference", "the true circuit"),
        (comparison.extra - idle, "found", "the circuit found"),
        (other, "model", "the model"),
    ):
        edge = min(edges)  # there is one of each
        said, expected = said_of(browser, edge)[2], off_by(found, str(edge), among=among)
        assert said.startswith(f"effect: without it {what} is off by ")
        assert float(said.rpartition(" ")[2]) == pytest.approx(expected, rel=5e-3, abs=1e-6)
    edge = min(set(graph.edges) - structural - comparison.extra)
    assert said_of(browser, edge)[2] == "effect: none: it carries nothing that is read"
    browser, (found, _) = opened("edge-pruning-minimax"), recoveries("edge-pruning-minimax")
    browser.find_element(By.ID, "step").send_keys(Keys.HOME)
    first, graph = found.discovery.snapshots[0].log_alpha, found.assessment.found.graph
    for edge in graph.edges[:3]:
        value = round(float(first[graph.position(edge)]), 2)
        assert said_of(browser, edge)[-1] == f"log α at this step: {significant(value)}"


def said_of(browser, edge):
    hit = browser.find_element(By.CSS_SELECTOR, f"#circuit .hit[aria-label='{edge}']")
    browser.execute_script("arguments[0].dispatchEvent(new MouseEvent('mouseenter'))", hit)
    return text(browser, "about").splitlines()


@in_browser
@pytest.mark.sweep
def test_the_threshold_and_the_step_move_edges_and_both_are_undone(opened, recoveries):
    browser, (found, _) = opened("edge-pruning-minimax"), recoveries("edge-pruning-minimax")
    edges, every = len(found.assessment.reference), len(found.assessment.found.graph.edges)
    threshold, step = (browser.find_element(By.ID, name) for name in ("threshold", "step"))
    threshold.send_keys(Keys.HOME)
    assert drawn(browser, "true") + drawn(browser, "extra") == every
    threshold.send_keys(Keys.END)
    assert drawn(browser, "missing") == edges
    step.send_keys(Keys.HOME)
    assert text(browser, "verdict").startswith(f"at step 0: {every} edges")  # all masks start above 0
    cursor = browser.find_element(By.CSS_SELECTOR, "section:not([hidden]) .cursor")
    assert cursor.get_attribute("x1") == cursor.get_attribute("data-left")
    step.send_keys(Keys.END)
    assert f": {edges} edges, exactly" in text(browser, "verdict")
    threshold.send_keys(Keys.END)
    browser.find_element(By.ID, "found").click()
    assert drawn(browser, "true") == edges


@in_browser
@pytest.mark.sweep
def test_the_switches_show_structural_edges_and_the_other_ablation(opened, recoveries):
    browser, (zero, resample) = opened("edge-pruning-minimax"), recoveries("edge-pruning-minimax")
    assert drawn(browser, "structural") == 0
    browser.find_element(By.ID, "structural").click()
    truth = zero.assessment.truth
    assert drawn(browser, "structural") == len(truth.structural - truth.circuit.edges)
    browser.find_element(By.CSS_SELECTOR, "input[name=ablation][value='1']").click()
    assert drawn(browser, "true") == len(resample.assessment.reference)
    shown = browser.find_elements(By.CSS_SELECTOR, "section:not([hidden]) h2")
    assert shown[0].text == "Certificate and run, resample ablation"
    assert browser.get_log("browser") == []


def test_nothing_is_loaded_from_elsewhere(recoveries, tmp_path):
    write_page(recoveries("random"), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "src=" not in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")


# A circuit that was saved, such as that of a run on a language model

GRAPH = Graph.transformer(embeddings=("embed",), layers=2, heads=2)
KEPT = ("embed->a0.h0.v", "a0.h0->m0", "m0->logits", "embed->a0.h1.q", "a0.h1->a1.h0.k", "a1.h0->logits")


def a_run(folder, *, graph=GRAPH, kept=KEPT, scores=True):
    """The folder of a run: a circuit whose edges score highest."""
    circuit = Circuit(graph, "resample", frozenset(map(Edge.parse, kept)))
    marks = {edge: 1.0 if edge in circuit.edges else 0.01 * n for n, edge in enumerate(graph.edges)}
    method = {"name": "edge-pruning", "seed": 0}
    save_circuit(SavedCircuit(circuit, marks if scores else {}, "/a/folder/of/gpt2", method), folder / "circuit.json")
    (folder / "run.json").write_text(
        json.dumps({"format": "…", "config": {"model": "/a/folder/of/gpt2", "task": "ioi"}})
    )
    (folder / "outcome.json").write_text(json.dumps({"sparsity": 0.8125, "reached": True}))
    return circuit


@pytest.fixture
def page_of(browser, tmp_path, capsys):
    """Open the page that `edgeprune draw` makes of a run."""

    def page_of(*more, status=0, **made):
        a_run(tmp_path, **made)
        assert main(["draw", str(tmp_path), "-o", str(tmp_path / "run.html"), *more]) == status
        browser.get((tmp_path / "run.html").as_uri())
        assert browser.get_log("browser") == []
        return browser

    return page_of


def shown(browser):
    """The edges that are drawn, by name."""
    hits = browser.find_elements(By.CSS_SELECTOR, "#circuit .hit:not(.none)")
    return {hit.get_attribute("aria-label") for hit in hits}


def choose(browser, node, *, paths):
    Select(browser.find_element(By.ID, "node")).select_by_visible_text(node)
    box = browser.find_element(By.ID, "paths")
    if box.is_selected() != paths:
        box.click()


@in_browser
def test_a_run_has_a_page_with_filters_by_score_node_and_path(page_of):
    browser = page_of()
    assert shown(browser) == {*KEPT} and drawn(browser, "kept") == len(KEPT)
    assert browser.title == "gpt2, resample ablation, edge-pruning"  # a name, and no folder
    assert text(browser, "verdict") == "found by edge-pruning: 6 edges"
    body = browser.find_element(By.TAG_NAME, "body").text
    assert "ioi" in body and "0.8125" in body and f"6 of {GRAPH.total} edges are kept" in body
    # By node: what it reads and writes; by path: what lies on a path through it, and nothing beside.
    for node, own, through in (
        ("a1.h0", {*KEPT[4:]}, {*KEPT[3:]}),
        ("m0", {*KEPT[1:3]}, {*KEPT[:3]}),
        ("embed", {KEPT[0], KEPT[3]}, {*KEPT}),
        ("logits", {KEPT[2], KEPT[5]}, {*KEPT}),
        ("m1", set(), set()),
    ):
        choose(browser, node, paths=False)
        assert shown(browser) == own
        choose(browser, node, paths=True)
        assert shown(browser) == through and text(browser, "shown") == f"{len(through)} edges are shown"
        assert text(browser, "verdict") == "found by edge-pruning: 6 edges"  # the circuit is the same
    browser.find_element(By.ID, "found").click()
    assert shown(browser) == {*KEPT} and text(browser, "shown") == ""
    browser.find_element(By.CSS_SELECTOR, "#circuit .node[aria-label='m0']").click()
    assert Select(browser.find_element(By.ID, "node")).first_selected_option.text == "m0"
    # By score, with a filter at once.
    threshold = browser.find_element(By.ID, "threshold")
    threshold.send_keys(Keys.HOME)
    choose(browser, "m1", paths=False)
    assert shown(browser) == {str(e) for e in GRAPH.edges if "m1" in (str(e.source), str(e.destination))}
    assert text(browser, "verdict") == f"at this threshold: {GRAPH.total} edges"
    threshold.send_keys(Keys.END)
    assert shown(browser) == set() and text(browser, "verdict") == "at this threshold: 0 edges"
    assert browser.get_log("browser") == []


@in_browser
def test_sliders_show_their_value_from_the_start_and_edges_have_arrowheads(page_of, opened, recoveries):
    browser = page_of()
    below = 0.01 * max(n for n, edge in enumerate(GRAPH.edges) if str(edge) not in KEPT)
    assert text(browser, "threshold-says") == f"score above {significant(below)}"
    assert not browser.find_element(By.ID, "step").is_displayed()
    line = browser.find_element(By.CSS_SELECTOR, "#circuit .line.kept")
    assert 'url("#head-kept")' in line.value_of_css_property("marker-end")
    assert browser.execute_script("return document.querySelector('#head-kept path').getBBox().width") == 10
    ends = browser.execute_script(
        "return [...document.querySelectorAll('.line:not(.none)')].map(l => l.getPointAtLength(l.getTotalLength()).y)"
    )
    bottoms = browser.execute_script("return data.nodes.map(node => node.y + 13)")
    assert {round(end) for end in ends} <= set(bottoms)  # where the tip of an arrowhead is
    browser = opened("edge-pruning-minimax")
    assert text(browser, "step-says") == str(recoveries("edge-pruning-minimax")[0].discovery.snapshots[-1].step)
    assert text(browser, "threshold-says").startswith(("score above ", "as found"))


@in_browser
def test_a_truth_beside_a_run_tells_what_is_missing_and_a_group_is_told(page_of, tmp_path):
    true = tmp_path / "true.json"
    save_circuit(Circuit(GRAPH, "resample", frozenset(map(Edge.parse, [*KEPT[1:], "embed->m1"]))), true)
    browser = page_of("--against", str(true), status=1)
    assert (drawn(browser, "true"), drawn(browser, "missing"), drawn(browser, "extra")) == (5, 1, 1)
    assert text(browser, "verdict") == "found by edge-pruning: 6 edges, 1 missing, 1 extra"
    grouped = Graph.transformer(embeddings=("embed",), layers=1, heads=4, kv_heads=2)
    browser = page_of(graph=grouped, kept=("embed->a0.h1.k", "a0.h3->logits"), scores=False)
    assert not browser.find_element(By.ID, "threshold").is_displayed()  # there are no scores
    said = said_of(browser, "embed->a0.h1.k")
    assert said == ["embed->a0.h1.k", "kept", "a0.h1.k is read by a0.h2, a0.h3, which share it", "score: none"]
    choose(browser, "a0.h3", paths=True)
    assert shown(browser) == {"embed->a0.h1.k", "a0.h3->logits"}


def test_of_many_edges_the_page_has_the_circuit_and_those_that_score_highest(tmp_path, monkeypatch):
    monkeypatch.setattr(circuit_page, "MOST_EDGES", 10)
    a_run(tmp_path)
    assert main(["draw", str(tmp_path), "-o", str(tmp_path / "run.html")]) == 0
    page = (tmp_path / "run.html").read_text()
    data = json.loads(page.partition('<script type="application/json" id="data">')[2].partition("</script>")[0])
    others = [str(edge) for edge in GRAPH.edges if str(edge) not in KEPT][-4:]
    assert {edge["name"] for edge in data["edges"]} == {*KEPT, *others}
    assert f"6 of {GRAPH.total} edges are kept. The page has these and the 4 that score highest" in page
    assert "src=" not in page and "http" not in page.replace("http://www.w3.org/2000/svg", "")
