/* Moves the pointer over the picture once a frame for three seconds. Comes to the frames a second
   and the viewer's own work in each, in milliseconds, timed around what it asks of the browser. */
async () => {
  const canvas = document.querySelector('#viewer canvas');
  const box = canvas.getBoundingClientRect();
  const send = (type, x, y) => canvas.dispatchEvent(new PointerEvent(type, {
    pointerId: 1, isPrimary: true, pointerType: 'mouse', bubbles: true,
    button: type === 'pointermove' ? -1 : 0,
    clientX: box.left + box.width / 2 + x, clientY: box.top + box.height / 2 + y}));
  const ask = window.requestAnimationFrame.bind(window);
  const work = [];
  window.requestAnimationFrame = (draw) => ask((time) => {
    const start = performance.now();
    draw(time);
    work.push(performance.now() - start);
  });
  send('pointerdown', 0, 0);
  const times = [];
  const start = performance.now();
  while (performance.now() - start < 3000) {
    send('pointermove', 100 * Math.sin(times.length / 20), 80 * Math.cos(times.length / 17));
    times.push(await new Promise(ask));
  }
  send('pointerup', 0, 0);
  window.requestAnimationFrame = ask;
  const middle = (numbers) => numbers.sort((a, b) => a - b)[numbers.length >> 1];
  const gaps = times.slice(1).map((time, i) => time - times[i]);
  return [1000 / middle(gaps), middle(work)];
}
