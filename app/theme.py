"""The page's colours, spacing and fonts as a gradio theme; the rest is the style sheets."""

from __future__ import annotations

import gradio as gr


def theme() -> gr.themes.Base:
    """Return greys with one teal, and fonts that gradio ships, so that none is fetched."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.slate,
        text_size=gr.themes.sizes.text_sm,
        spacing_size=gr.themes.sizes.spacing_sm,
        radius_size=gr.themes.sizes.radius_sm,
        font=[gr.themes.LocalFont("IBM Plex Sans", weights=(400, 700)), "system-ui", "sans-serif"],
        font_mono=[
            gr.themes.LocalFont("IBM Plex Mono", weights=(400, 700)), "ui-monospace", "monospace"
        ],
    ).set(
        body_background_fill="#f1f4f6",
        body_background_fill_dark="#0b1014",
        body_text_color="#17222b",
        body_text_color_dark="#e3eaf0",
        body_text_color_subdued="#516070",
        body_text_color_subdued_dark="#9badbb",
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        block_border_width="0px",
        block_shadow="none",
        block_padding="0px",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_title_text_weight="600",
        border_color_primary="#d5dde4",
        border_color_primary_dark="#26323c",
        input_background_fill="#ffffff",
        input_background_fill_dark="#10171d",
        input_border_width="1px",
        input_border_color="#8795a3",
        input_border_color_dark="#5b6b79",
        button_primary_background_fill="#0b656d",
        button_primary_background_fill_hover="#084f56",
        button_primary_background_fill_dark="#7fd3d6",
        button_primary_background_fill_hover_dark="#a5e3e5",
        button_primary_text_color="#ffffff",
        button_primary_text_color_dark="#06262a",
        slider_color="#0b656d",
        slider_color_dark="#7fd3d6",
    )  # fmt: skip
