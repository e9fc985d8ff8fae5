/* The picture viewer: window, zoom, pan, frames and the attention over the picture.

   The body of a function that gradio calls once with `element`, `trigger`, `props` and
   `watch`. A picture comes as JSON in `props.value` (made by app/sections/payload.py); its markup is fixed, so
   nothing of a case is ever parsed as HTML. Coordinates are pixels of the file, and a view
   is a scale in screen pixels per file pixel with the file point at the canvas's middle.

   A grey picture is an index into a table of its values. A window turns the table into a
   table of colours, and only what is on the screen is looked up in it, in a pyramid of
   halved pictures where the screen is coarser than the file. */

const root = element.querySelector('.viewer');
const find = (selector) => root.querySelector(selector);
const stage = find('.stage');
const canvas = find('canvas');
const context = canvas.getContext('2d', {alpha: false});
const scratch = document.createElement('canvas');
const heatPixels = document.createElement('canvas');
const presetMenu = find('.preset select');
const frameSlider = find('.frames input');
const heatMenu = find('.heat-tools select');
const opacity = find('.opacity input');
const useBox = find('.use input');

const MOST_ZOOM = 40;
let film = null; // the picture, decoded
let shown = {}; // what `scratch` holds room for
let view = {scale: 1, x: 0, y: 0, fitted: true};
let win = {center: 0, width: 1, preset: 0}; // preset −1: by hand
let invert = false;
let heat = null;
let pointer = null; // where the mouse is, in file pixels
let serial = 0;
let wanted = 0; // an animation frame has been asked for

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
/* A number with as many digits as a range of this width needs, and a true minus sign. */
const short = (value, width) => {
  const digits = width >= 20 || Number.isInteger(value) ? 0 : width >= 1 ? 2 : 4;
  return value.toFixed(digits).replace(/^-(?=.*[1-9])/, '−').replace(/^-/, '');
};

/* ---- decoding ---- */

function bytesOf(base64) {
  const characters = atob(base64);
  const bytes = new Uint8Array(characters.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = characters.charCodeAt(i);
  return bytes;
}

async function decode(sent) {
  if (sent.kind === 'colour') {
    const picture = new Image();
    picture.src = sent.picture;
    await picture.decode();
    return {...sent, picture};
  }
  const deflated = new Blob([bytesOf(sent.index)]).stream();
  const inflated = deflated.pipeThrough(new DecompressionStream('deflate'));
  const planes = new Uint8Array(await new Response(inflated).arrayBuffer());
  const {width, height} = sent;
  const count = width * height;
  const index = new Uint16Array(count);
  for (let y = 0, i = 0; y < height; y++) {
    let value = 0; // differences along the row; high bytes come before low ones
    for (let x = 0; x < width; x++, i++) {
      value = (value + (planes[i] << 8) + planes[count + i]) & 0xffff;
      index[i] = value;
    }
  }
  let values;
  if (sent.table.values) {
    values = new Float64Array(bytesOf(sent.table.values).buffer);
  } else {
    values = Float64Array.from({length: sent.size}, (_, i) => sent.table.first + i * sent.table.step);
  }
  const levels = [{width, height, index, step: sent.step}];
  while (Math.max(levels.at(-1).width, levels.at(-1).height) > 256) {
    levels.push(halved(levels.at(-1), sent.padded ? sent.size : -1));
  }
  return {...sent, index: null, values, levels, greys: sent.greys && bytesOf(sent.greys)};
}

/* Means of 2 × 2 places in the table, which is as good as means of values in a picture that
   is only looked at from afar; padding does not count unless it is the larger part. */
function halved(level, pad) {
  const {width, height, index} = level;
  const w = (width + 1) >> 1;
  const h = (height + 1) >> 1;
  const half = new Uint16Array(w * h);
  for (let y = 0, i = 0; y < h; y++) {
    const upper = 2 * y * width;
    const lower = Math.min(2 * y + 1, height - 1) * width;
    for (let x = 0; x < w; x++, i++) {
      const left = 2 * x;
      const right = Math.min(left + 1, width - 1);
      const a = index[upper + left], b = index[upper + right];
      const c = index[lower + left], d = index[lower + right];
      if (pad < 0) {
        half[i] = (a + b + c + d + 2) >> 2;
      } else {
        let sum = 0, n = 0;
        for (const place of [a, b, c, d]) if (place !== pad) { sum += place; n++; }
        half[i] = n >= 2 ? Math.round(sum / n) : pad;
      }
    }
  }
  return {width: w, height: h, index: half, step: 2 * level.step};
}

/* ---- greys ---- */

/* DICOM PS3.3 C.11.2.1.2.1 and C.11.2.1.3, rounded half to even as on the server. */
function greyOf(x, center, width, kind) {
  let y;
  if (kind === 'SIGMOID') {
    y = 255 / (1 + Math.exp(-4 * (x - center) / width));
  } else {
    if (kind === 'LINEAR') { center -= 0.5; width -= 1; }
    if (x <= center - width / 2) return 0;
    if (x > center + width / 2) return 255;
    y = ((x - center) / width + 0.5) * 255;
  }
  const rounded = Math.round(y);
  return rounded - y === 0.5 && rounded % 2 ? rounded - 1 : rounded;
}

function colourTable() {
  const colours = new Uint32Array(65536).fill(0xff000000); // beyond the table lies padding
  const turned = film.inverted !== invert;
  for (let i = 0; i < film.size; i++) {
    let grey = win.center === null
      ? film.greys[i] : greyOf(film.values[i], win.center, win.width, film.function);
    if (turned) grey = 255 - grey;
    colours[i] = 0xff000000 | (grey * 0x010101);
  }
  return colours;
}

/* ---- drawing ---- */

function paint() {
  wanted = 0;
  context.fillStyle = '#000';
  context.fillRect(0, 0, canvas.width, canvas.height);
  if (!film) return;
  const {scale} = view;
  let left = canvas.width / 2 - view.x * scale;
  let top = canvas.height / 2 - view.y * scale;
  if (Number.isInteger(scale)) { left = Math.round(left); top = Math.round(top); }
  context.save();
  context.beginPath();
  context.rect(left, top, film.columns * scale, film.rows * scale);
  context.clip();
  if (film.kind === 'grey') {
    paintGrey(left, top, scale);
  } else {
    context.imageSmoothingEnabled = scale !== 1;
    context.imageSmoothingQuality = 'high';
    context.drawImage(film.picture, left, top, film.columns * scale, film.rows * scale);
  }
  if (heat && heatMenu.value !== 'off') paintHeat(left, top, scale);
  context.restore();
  describe();
}

function paintGrey(left, top, scale) {
  let level = film.levels[0];
  for (const coarser of film.levels) if (coarser.step * scale <= 1) level = coarser;
  const size = level.step * scale; // of one of its pixels on the screen
  const x0 = clamp(Math.floor(-left / size), 0, level.width);
  const y0 = clamp(Math.floor(-top / size), 0, level.height);
  const x1 = clamp(Math.ceil((canvas.width - left) / size), 0, level.width);
  const y1 = clamp(Math.ceil((canvas.height - top) / size), 0, level.height);
  const w = x1 - x0;
  const h = y1 - y0;
  if (w <= 0 || h <= 0) return;
  if (shown.width !== w || shown.height !== h) {
    scratch.width = w;
    scratch.height = h;
    const brush = scratch.getContext('2d', {alpha: false});
    const data = brush.createImageData(w, h);
    shown = {width: w, height: h, brush, data, pixels: new Uint32Array(data.data.buffer)};
  }
  const {pixels, brush, data} = shown;
  const {index, width} = level;
  const colours = colourTable();
  for (let y = 0, to = 0; y < h; y++) {
    let from = (y0 + y) * width + x0;
    for (const end = from + w; from < end; from++, to++) pixels[to] = colours[index[from]];
  }
  brush.putImageData(data, 0, 0);
  context.imageSmoothingEnabled = size !== 1;
  context.imageSmoothingQuality = 'low'; // a level is at most twice as fine as the screen
  context.drawImage(scratch, left + x0 * size, top + y0 * size, w * size, h * size);
}

/* What the patches cover: the picture, or a square that is padded evenly, the odd pixel after
   the picture. */
function covered() {
  if (!heat.padded) return { height: film.rows, width: film.columns, top: 0, left: 0 };
  const side = Math.max(film.rows, film.columns);
  return {
    height: side,
    width: side,
    top: -Math.floor((side - film.rows) / 2),
    left: -Math.floor((side - film.columns) / 2),
  };
}

function paintHeat(left, top, scale) {
  const s = covered();
  const x = left + s.left * scale;
  const y = top + s.top * scale;
  context.globalAlpha = opacity.value / 100;
  context.imageSmoothingEnabled = false;
  context.drawImage(heatPixels, x, y, s.width * scale, s.height * scale);
  context.globalAlpha = 1;
  const patch = patchAt(pointer);
  if (patch) {
    const [rows, columns] = heat.grid;
    const w = s.width * scale / columns;
    const h = s.height * scale / rows;
    for (const [style, width] of [['#000', 4], ['#fff', 2]]) {
      context.strokeStyle = style;
      context.lineWidth = width;
      context.strokeRect(x + patch.column * w, y + patch.row * h, w, h);
    }
  }
}

/* The patch that covers a point of the file, or null off the picture. */
function patchAt(point) {
  if (!heat || !point || !inside(point)) return null;
  const s = covered();
  const [rows, columns] = heat.grid;
  return {
    row: Math.floor((point.y - s.top) / s.height * rows),
    column: Math.floor((point.x - s.left) / s.width * columns),
  };
}

const inside = (point) =>
  point.x >= 0 && point.y >= 0 && point.x < film.columns && point.y < film.rows;

function colourAt(scale, share) {
  const after = Math.max(1, scale.findIndex(([place]) => place >= share));
  const [[low, first], [high, second]] = [scale[after - 1], scale[after]];
  const part = (share - low) / (high - low);
  return [1, 3, 5].map((i) => {
    const [from, to] = [first, second].map((colour) => parseInt(colour.slice(i, i + 2), 16));
    return Math.round(from + part * (to - from));
  });
}

function drawHeatPixels() {
  const kind = heatMenu.value;
  find('.heat-scale').hidden = !heat || kind === 'off';
  find('.opacity').hidden = kind === 'off';
  if (!heat || kind === 'off') return;
  const [rows, columns] = heat.grid;
  heatPixels.width = columns;
  heatPixels.height = rows;
  const brush = heatPixels.getContext('2d');
  const data = brush.createImageData(columns, rows);
  const signed = kind === 'difference';
  const limit = (signed ? heat.swing : heat.top) || 1;
  for (let i = 0; i < rows * columns; i++) {
    const value = signed ? heat.after[i] - heat.before[i] : heat[kind][i];
    const share = clamp(value / limit, -1, 1);
    const colour = colourAt(
      signed ? heat.diverging : heat.sequential, signed ? (share + 1) / 2 : Math.max(share, 0));
    data.data.set([...colour, Math.round(255 * Math.abs(share))], 4 * i);
  }
  brush.putImageData(data, 0, 0);
  const scale = signed ? heat.diverging : heat.sequential;
  const stops = scale.map(([place, colour]) => `${colour} ${100 * place}%`);
  find('.heat-scale i').style.background = `linear-gradient(90deg, ${stops.join(', ')})`;
  find('.heat-scale .low').textContent = signed ? `−${limit.toFixed(4)}` : '0';
  find('.heat-scale .high').textContent = `${signed ? '+' : ''}${limit.toFixed(4)} a patch`;
}

function repaint() {
  if (!wanted) wanted = requestAnimationFrame(paint);
}

/* ---- words ---- */

function windowWords() {
  if (film.kind !== 'grey') return 'colour, as it is';
  const name = win.preset < 0 ? 'by hand' : film.presets[win.preset]?.name ?? 'header’s VOI LUT';
  const numbers = win.center === null ? '' : `C ${short(win.center, win.width)}  W ${short(win.width, win.width)}  `;
  return `${numbers}${name}${invert ? ', inverted' : ''}`;
}

function describe() {
  find('.hud-window').textContent = windowWords();
  find('.hud-zoom').textContent = `${Math.round(100 * view.scale)} %`
    + (film.frames > 1 ? `  frame ${film.frame + 1} of ${film.frames}` : '');
  let value = '';
  let reading = '';
  if (pointer && inside(pointer)) {
    const x = Math.floor(pointer.x);
    const y = Math.floor(pointer.y);
    value = `x ${x}  y ${y}`;
    if (film.kind === 'grey') {
      const level = film.levels[0];
      const place = level.index[
        Math.floor(y / level.step) * level.width + Math.floor(x / level.step)];
      value += place === film.size ? '  padding' : `  value ${short(film.values[place], film.values.at(-1) - film.values[0])}`;
    }
    const patch = patchAt(pointer);
    if (patch && heatMenu.value !== 'off') {
      const i = patch.row * heat.grid[1] + patch.column;
      const change = heat.after[i] - heat.before[i];
      reading = `layer ${heat.layer}, patch ${patch.row}, ${patch.column}: `
        + `${heat.before[i].toFixed(4)} → ${heat.after[i].toFixed(4)} `
        + `(${change < 0 ? '−' : '+'}${Math.abs(change).toFixed(4)})`;
    }
  }
  find('.hud-value').textContent = value;
  find('.hud-patch').textContent = reading;
}

let speaking = 0;
function speak() {
  clearTimeout(speaking);
  speaking = setTimeout(() => {
    if (film) find('.viewer-live').textContent =
      `${windowWords().replace('C ', 'centre ').replace('W ', 'width ')}; `
      + `zoom ${Math.round(100 * view.scale)} %`;
  }, 500);
}

/* ---- the window ---- */

let telling = 0;
/* Keep what the server may be asked to draw with, and tell it where the model uses it. */
function windowChanged({tell = useBox.checked} = {}) {
  root.dataset.view = JSON.stringify(
    {use: useBox.checked, center: win.center, width: win.width, invert});
  presetMenu.value = String(win.preset);
  find('[data-do=invert]').setAttribute('aria-pressed', String(invert));
  repaint();
  speak();
  if (tell) {
    clearTimeout(telling);
    telling = setTimeout(() => trigger('seen'), 120);
  }
}

function choosePreset(i) {
  if (film?.kind !== 'grey') return;
  if (i === film.presets.length && film.greys) {
    win = {center: null, width: null, preset: i};
  } else if (film.presets[i]) {
    const {center, width} = film.presets[i];
    win = {center, width, preset: i};
  } else {
    return;
  }
  windowChanged();
}

/* A step in widths, so that a drag feels alike in 8 and in 16 bits. */
function moveWindow(wider, up, from = win) {
  if (film?.kind !== 'grey') return;
  let {center, width} = from;
  if (center === null) { // the table of a VOI LUT has no window: begin at the full range
    const full = film.presets.at(-1);
    ({center, width} = full);
  }
  width = clamp(width * Math.exp(wider), film.function === 'LINEAR' ? 1 : 1e-6, 1e9);
  win = {center: clamp(center + up * width, -1e9, 1e9), width, preset: -1};
  windowChanged();
}

function toggleInvert() {
  if (film?.kind !== 'grey') return;
  invert = !invert;
  windowChanged();
}

/* ---- the view ---- */

function fit() {
  const {rows, columns} = film;
  view = {
    scale: Math.min(canvas.width / columns, canvas.height / rows),
    x: columns / 2,
    y: rows / 2,
    fitted: true,
  };
  repaint();
}

function zoomTo(scale, at = {x: canvas.width / 2, y: canvas.height / 2}) {
  if (!film) return;
  const least = 0.5 * Math.min(canvas.width / film.columns, canvas.height / film.rows);
  scale = clamp(scale, Math.min(least, 1), MOST_ZOOM);
  // The point under `at` stays there.
  const x = view.x + (at.x - canvas.width / 2) * (1 / view.scale - 1 / scale);
  const y = view.y + (at.y - canvas.height / 2) * (1 / view.scale - 1 / scale);
  moveTo(x, y, scale);
  speak();
}

function moveTo(x, y, scale = view.scale) {
  view = {scale, x: clamp(x, 0, film.columns), y: clamp(y, 0, film.rows), fitted: false};
  repaint();
}

function reset() {
  if (!film) return;
  invert = false;
  fit();
  if (film.kind === 'grey') choosePreset(film.greys ? film.presets.length : 0);
  else windowChanged();
}

function filePoint(event) {
  const at = screenPoint(event);
  return {
    x: view.x + (at.x - canvas.width / 2) / view.scale,
    y: view.y + (at.y - canvas.height / 2) / view.scale,
  };
}

function screenPoint(event) {
  const box = canvas.getBoundingClientRect();
  const ratio = canvas.width / box.width;
  return {x: (event.clientX - box.left) * ratio, y: (event.clientY - box.top) * ratio};
}

/* ---- mouse, touch and keys ---- */

const touches = new Map();
let drag = null;
let pinch = null;
let spaceHeld = false;

function startDrag(event, at) {
  const pans = spaceHeld || event.button === 1 || film.kind !== 'grey';
  drag = {pans, at, view, win};
  stage.dataset.drag = pans ? 'pan' : 'window';
}

canvas.addEventListener('pointerdown', (event) => {
  if (!film || event.button > 1) return;
  if (event.button === 1) event.preventDefault(); // no automatic scrolling
  canvas.focus({preventScroll: true});
  try { canvas.setPointerCapture(event.pointerId); } catch { /* it has already been lifted */ }
  const at = screenPoint(event);
  touches.set(event.pointerId, at);
  if (touches.size === 1) {
    startDrag(event, at);
  } else if (touches.size === 2) {
    if (drag && !drag.pans && win !== drag.win) { win = drag.win; windowChanged(); }
    drag = null;
    pinch = spread();
  }
});

function spread() {
  const [a, b] = [...touches.values()];
  return {
    middle: {x: (a.x + b.x) / 2, y: (a.y + b.y) / 2},
    distance: Math.max(1, Math.hypot(a.x - b.x, a.y - b.y)),
  };
}

canvas.addEventListener('pointermove', (event) => {
  if (!film) return;
  const at = screenPoint(event);
  if (touches.has(event.pointerId)) touches.set(event.pointerId, at);
  if (pinch && touches.size === 2) {
    const now = spread();
    const {scale} = view;
    moveTo(view.x - (now.middle.x - pinch.middle.x) / scale,
      view.y - (now.middle.y - pinch.middle.y) / scale);
    zoomTo(scale * now.distance / pinch.distance, now.middle);
    pinch = now;
  } else if (drag) {
    const ratio = window.devicePixelRatio || 1;
    const x = (at.x - drag.at.x) / ratio;
    const y = (at.y - drag.at.y) / ratio;
    if (drag.pans) {
      moveTo(drag.view.x - x * ratio / view.scale, drag.view.y - y * ratio / view.scale);
    } else {
      moveWindow(x / 200, y / 400, drag.win);
    }
  }
  pointer = filePoint(event);
  repaint();
});

function endDrag(event) {
  touches.delete(event.pointerId);
  if (touches.size === 0) {
    drag = null;
    delete stage.dataset.drag;
  }
  if (touches.size < 2) pinch = null;
}
canvas.addEventListener('pointerup', endDrag);
canvas.addEventListener('pointercancel', endDrag);
canvas.addEventListener('pointerleave', () => {
  pointer = null;
  repaint();
});
canvas.addEventListener('mousedown', (event) => {
  if (event.button === 1) event.preventDefault();
});
canvas.addEventListener('wheel', (event) => {
  if (!film) return;
  event.preventDefault();
  const lines = event.deltaMode === 1 ? 16 : 1;
  zoomTo(view.scale * Math.exp(-event.deltaY * lines * (event.ctrlKey ? 0.01 : 0.0015)),
    screenPoint(event));
}, {passive: false});

const KEYS = {
  i: toggleInvert,
  r: reset,
  f: toggleFull,
  h: () => {
    if (!heat) return;
    heatMenu.value = heatMenu.value === 'off' ? 'after' : 'off';
    heatMenu.dispatchEvent(new Event('change'));
  },
  '+': () => zoomTo(view.scale * 1.25),
  '=': () => zoomTo(view.scale * 1.25),
  '-': () => zoomTo(view.scale / 1.25),
  '−': () => zoomTo(view.scale / 1.25),
  ArrowLeft: () => moveWindow(-0.05, 0),
  ArrowRight: () => moveWindow(0.05, 0),
  ArrowUp: () => moveWindow(0, -0.02),
  ArrowDown: () => moveWindow(0, 0.02),
  '[': () => stepFrame(-1),
  ']': () => stepFrame(1),
  PageUp: () => stepFrame(-1),
  PageDown: () => stepFrame(1),
};

root.addEventListener('keydown', (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest('input, select')) return;
  if (event.key === 'Escape' && root.classList.contains('maximised')) toggleFull();
  if (event.target === canvas && event.key === ' ') {
    spaceHeld = true;
    event.preventDefault();
    return;
  }
  const digit = Number(event.key);
  const act = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key]
    ?? (digit >= 1 && digit <= 9 ? () => choosePreset(digit - 1) : null);
  if (!act || !film) return;
  event.preventDefault();
  act();
});
window.addEventListener('keyup', (event) => {
  if (event.key === ' ') spaceHeld = false;
});
window.addEventListener('blur', () => { spaceHeld = false; });

/* ---- tools ---- */

const TOOLS = {
  invert: toggleInvert,
  reset,
  in: () => zoomTo(view.scale * 1.25),
  out: () => zoomTo(view.scale / 1.25),
  actual: () => zoomTo(1),
  full: toggleFull,
};
root.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-do]');
  if (button && film) TOOLS[button.dataset.do]();
});
presetMenu.addEventListener('change', () => choosePreset(Number(presetMenu.value)));
useBox.addEventListener('change', () => windowChanged({tell: true}));
heatMenu.addEventListener('change', () => { drawHeatPixels(); repaint(); });
opacity.addEventListener('input', repaint);

/* Some browsers (iPhones) let no element fill the screen; there it fills the window. */
function toggleFull() {
  if (document.fullscreenElement) {
    document.exitFullscreen();
  } else if (root.classList.contains('maximised')) {
    root.classList.remove('maximised');
  } else if (root.requestFullscreen) {
    root.requestFullscreen().catch(() => root.classList.add('maximised'));
  } else {
    root.classList.add('maximised');
  }
  canvas.focus({preventScroll: true});
}
new MutationObserver(markFull).observe(root, {attributes: true, attributeFilter: ['class']});
document.addEventListener('fullscreenchange', markFull);
function markFull() {
  const full = document.fullscreenElement === root || root.classList.contains('maximised');
  find('[data-do=full]').setAttribute('aria-pressed', String(full));
}

let framing = 0;
function stepFrame(by) {
  if (!film || film.frames === 1 || !film.framesKept) return;
  frameSlider.value = Number(frameSlider.value) + by;
  askFrame();
}
/* The server keeps the file, and reads the frame that the slider rests on. */
function askFrame() {
  const frame = Number(frameSlider.value) - 1;
  find('.frames output').textContent = `${frame + 1} / ${film.frames}`;
  clearTimeout(framing);
  framing = setTimeout(() => trigger('frame', {frame}), 80);
}
frameSlider.addEventListener('input', askFrame);

/* ---- what comes from the server ---- */

function show(next) {
  const sameCase = film && next && film.kind === next.kind && film.case === next.case
    && film.rows === next.rows && film.columns === next.columns && next.frames > 1;
  const ready = Boolean(next);
  film = next;
  root.dataset.state = ready ? film.kind : 'empty';
  const grey = ready && film.kind === 'grey';
  for (const control of root.querySelectorAll('.tools button, .tools select')) {
    const windows = control === presetMenu || control.dataset.do === 'invert';
    control.disabled = windows ? !grey : !ready;
  }
  find('.stage-note').hidden = ready;
  canvas.setAttribute('aria-label', ready
    ? `${film.title}, ${film.columns} by ${film.rows} pixels` : 'No picture yet');
  for (const part of root.querySelectorAll('.hud')) part.textContent = '';
  find('.hud-flags').textContent = ready ? film.flags.join('\n') : '';

  presetMenu.replaceChildren();
  const names = grey ? film.presets.map((preset) => preset.name) : [];
  if (grey && film.greys) names.push('Header’s VOI LUT');
  names.forEach((name, i) => presetMenu.add(new Option(name, String(i))));
  presetMenu.add(new Option(grey ? 'By hand' : ready ? 'Colour: none' : 'None', '-1'));

  find('.frames').hidden = !ready || film.frames === 1 || !film.framesKept;
  if (ready) {
    frameSlider.max = film.frames;
    frameSlider.value = film.frame + 1;
    find('.frames output').textContent = `${film.frame + 1} / ${film.frames}`;
  }
  useBox.disabled = !grey || !film.windowable;
  const hints = [];
  if (ready && !grey) hints.push('A colour picture is shown as it is: it has no window to set.');
  if (grey && film.step > 1) {
    hints.push(`Shown with ${film.step} × ${film.step} pixels of the file averaged into one.`);
  }
  if (grey && !film.exact) hints.push('Its values are rounded to 65,536 levels here.');
  if (grey && !film.windowable) hints.push('Too large for the model to read it through your window.');
  if (ready && film.frames > 1 && !film.framesKept) {
    hints.push('Only this frame is shown: the file is too large to keep, or cannot be kept safely.');
  }
  find('.viewer-hint').textContent = hints.join(' ');
  find('.viewer-hint').hidden = !hints.length;

  if (!sameCase) {
    heatMenu.value = 'off';
    useBox.checked = false;
    invert = false;
    pointer = null;
    win = {center: null, width: null, preset: -1};
  }
  showHeat(null);
  if (!ready) {
    root.dataset.view = '';
    repaint();
    return;
  }
  if (!sameCase) reset();
  windowChanged({tell: true});
}

function showHeat(next) {
  heat = next;
  find('.heat-tools').hidden = !heat;
  drawHeatPixels();
  if (film) repaint();
}

/* A word says that a picture waits, to be fetched; a JSON object is that picture. */
async function receive() {
  const ticket = ++serial;
  const {value} = props;
  root.dataset.state = value ? 'loading' : 'empty';
  if (value && !value.startsWith('{')) {
    trigger('fetch');
    return;
  }
  const next = value ? await decode(JSON.parse(value)) : null;
  if (ticket === serial) show(next);
}

watch('value', receive);
root.addEventListener('heat', (event) => {
  showHeat(event.detail ? JSON.parse(event.detail) : null);
});
new ResizeObserver(() => {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.max(1, Math.round(stage.clientWidth * ratio));
  canvas.height = Math.max(1, Math.round(stage.clientHeight * ratio));
  if (film && view.fitted) fit();
  cancelAnimationFrame(wanted);
  paint(); // at once, or it would flicker
}).observe(stage);
show(null);
if (props.value) receive();
