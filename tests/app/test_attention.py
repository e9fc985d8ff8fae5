"""The attention section: scales, labels, patches, and refusals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tiny_case import answered_case, refused, trace

from app.sections.attention import AS_IT_RAN, heatmaps, lines, overlay, patch_attention
from mrrag.report import plots
from mrrag.report.pictures import heat_pixels, overlay_html, padded_square, patch_box


@pytest.mark.parametrize("view", plots.VIEWS)
def test_before_and_after_share_a_scale_and_the_difference_is_centred(view: str) -> None:
    maps = plots.attention_maps(trace(0), trace(1, (1, 2)), view)
    assert maps is not None
    before, after, difference = (figure.data[0] for figure in plots.heatmaps(maps))
    assert (before.zmin, before.zmax) == (after.zmin, after.zmax)
    assert before.zmin == 0.0
    assert before.zmax == pytest.approx(max(maps.before.max(), maps.after.max()))
    assert difference.zmin == -difference.zmax < 0
    assert np.abs(maps.difference).max() <= difference.zmax
    np.testing.assert_allclose(np.array(difference.z), maps.after - maps.before, atol=1e-7)


def test_the_difference_scale_is_symmetric_where_nothing_changed() -> None:
    maps = plots.attention_maps(trace(0), trace(0), plots.REPORTS)
    assert maps is not None
    difference = plots.heatmaps(maps)[2].data[0]
    assert difference.zmin == -difference.zmax < 0
    assert "changed nothing" in plots.summary(maps)


def test_whole_prompt_columns_sum_to_one() -> None:
    maps = plots.attention_maps(trace(0), trace(1), plots.WHOLE_PROMPT)
    assert maps is not None
    assert maps.columns == ("image", "reports", "question", "cue", "other")
    np.testing.assert_allclose(maps.before.sum(axis=1), 1.0, atol=1e-5)


def test_reports_column_is_the_mass_of_that_report() -> None:
    before = trace(0)
    maps = plots.attention_maps(before, trace(1), plots.REPORTS)
    assert maps is not None
    assert maps.columns == ("1", "2", "3")
    span = next(s for s in before.spans if s.name == "report 2")
    expected = before.keys_LX[:, span.start : span.stop].sum(axis=1)
    np.testing.assert_allclose(maps.before[:, 1], expected, rtol=1e-5)


def test_critical_layers_are_marked() -> None:
    assert plots.layer_labels(4, (1, 2)) == ["0", "▶ 1", "▶ 2", "3"]
    maps = plots.attention_maps(trace(0), trace(1, (1, 2)), plots.REPORTS)
    assert maps is not None
    frames = plots.heatmaps(maps)[0].layout.shapes
    assert [(s.y0 + s.y1) / 2 for s in frames] == [1, 2]


def test_cell_labels_contrast_with_their_cell() -> None:
    values = np.linspace(0, 1, 41, dtype=np.float32)[None]
    labels = plots.cell_labels(values, (0.0, 1.0), plots.SEQUENTIAL, signed=False)
    for trace_ in labels:
        assert trace_["textfont"]["color"] in ("#ffffff", "#000000")
    assert sum(len(trace_["x"]) for trace_ in labels) == values.size


def test_patches_tile_a_square_picture() -> None:
    boxes = [patch_box(y, x, (3, 3), 90, 90) for y in range(3) for x in range(3)]
    assert boxes[0] == (0, 0, 30, 30)
    assert boxes[-1] == (60, 60, 90, 90)


def test_patches_of_the_padding_are_cropped_from_a_wide_picture() -> None:
    # 40 rows in a square of 80: the padding takes 20 rows above and below.
    assert padded_square(40, 80) == (-20, 0, 80)
    assert patch_box(0, 0, (4, 4), 40, 80) is None
    assert patch_box(3, 0, (4, 4), 40, 80) is None
    assert patch_box(1, 0, (4, 4), 40, 80) == (0, 0, 20, 20)
    assert patch_box(2, 3, (4, 4), 40, 80) == (20, 60, 40, 80)


def test_patches_half_on_the_padding_are_cut_at_the_edge_of_a_tall_picture() -> None:
    assert padded_square(80, 60) == (0, -10, 80)
    assert patch_box(0, 0, (4, 4), 80, 60) == (0, 0, 20, 10)
    assert patch_box(0, 3, (4, 4), 80, 60) == (0, 50, 20, 60)


@pytest.mark.parametrize(("rows", "columns"), [(64, 64), (40, 80), (81, 60), (33, 50)])
def test_visible_patches_cover_the_picture_once(rows: int, columns: int) -> None:
    grid = (6, 6)
    boxes = [patch_box(y, x, grid, rows, columns) for y in range(6) for x in range(6)]
    area = sum((b[2] - b[0]) * (b[3] - b[1]) for b in boxes if b)
    assert area == pytest.approx(rows * columns)


def test_the_heat_is_laid_over_the_padded_square() -> None:
    markup = overlay_html("data:,", (40, 80), np.zeros((4, 4, 4), np.uint8), "X-ray")
    assert "top:-50.0000%;left:0.0000%;height:200.0000%;width:100.0000%" in markup


def test_heat_grows_with_the_value_and_survives_zero() -> None:
    alpha = heat_pixels(np.array([0.0, 0.5, 1.0]), 1.0)[:, 3]
    assert alpha[0] < alpha[1] < alpha[2]
    assert heat_pixels(np.zeros(2), 0.0).shape == (2, 4)


def test_overlay_reads_the_patches_of_the_layer() -> None:
    one = trace(0)
    image = next(s for s in one.spans if s.name == "image")
    np.testing.assert_array_equal(
        patch_attention(one, 2).ravel(), one.keys_LX[2, image.start : image.stop]
    )
    markup = overlay(answered_case(), 2)["overlays"]
    assert "Before: RAG" in markup
    assert "After: MR-RAG" in markup
    assert "Layer 2" in markup


def test_a_class_token_is_left_out_of_the_patches() -> None:
    one = trace(0)
    spans = tuple(replace(s, stop=s.stop) if s.name != "image" else s for s in one.spans)
    with_class = replace(one, spans=spans, grid=(1, 3))
    np.testing.assert_array_equal(patch_attention(with_class, 0)[0], one.keys_LX[0, 2:5])


@pytest.mark.parametrize("layer", [-1, 4, 1.5, None, "1", True])
def test_unknown_layers_are_refused(layer: object) -> None:
    refused(overlay(answered_case(), layer))


def test_controls_of_a_case_that_is_not_there_are_refused() -> None:
    refused(overlay(None, 1))
    refused(heatmaps("a case", plots.REPORTS, "Mean", 0, AS_IT_RAN))
    refused(heatmaps(answered_case(), "<script>", "Mean", 0, AS_IT_RAN))
    refused(lines(None, "Mean", 0))


@pytest.mark.parametrize("head", [-1, 2, "2", "x", None, [0], 0.5, True])
def test_unknown_heads_are_refused(head: object) -> None:
    refused(heatmaps(answered_case(), plots.REPORTS, head, 0, AS_IT_RAN))
    refused(lines(answered_case(), head, 0))


def test_one_head_is_shown_alone() -> None:
    shown = answered_case()
    before = shown.result.before
    assert before is not None
    apart = np.array(before.mass_LHS)
    apart[:, 1] = apart[:, 1, ::-1]
    other = replace(before, mass_LHS=apart)
    maps = plots.attention_maps(other, other, plots.REPORTS, 1)
    assert maps is not None
    np.testing.assert_array_equal(maps.before, apart[:, 1, 1:4])


def test_the_lines_are_the_mass_on_all_reports() -> None:
    figure = plots.report_lines(trace(0), trace(1, (1, 2)), 3)
    for line, one in zip(figure.data, (trace(0), trace(1)), strict=True):
        np.testing.assert_allclose(line.y, one.mass_LHS[:, 0, 1:4].sum(1), rtol=1e-5)
    assert [s.x0 for s in figure.layout.shapes] == [0.5, 1.5, 3]
