// A click on a heatmap or on the lines moves the layer's slider, and all that follows it.
const panel = element.closest('#attention');
const choose = (layer) => {
  const slider = panel.querySelector('#layer input[type=range]');
  const set = Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set;
  set.call(slider, layer);
  slider.dispatchEvent(new Event('input', {bubbles: true}));
};
panel.addEventListener('pointerover', (event) => {
  const plot = event.target.closest('.js-plotly-plot');
  if (!plot || plot.choosesLayer || !plot.on) return;
  plot.choosesLayer = true;
  const byRow = plot.closest('#maps') !== null;
  plot.on('plotly_click', ({points}) => choose(byRow ? points[0].y : points[0].x));
});
