/* Moves γ as a drag does. Comes to the seconds until the re-ranked cards have been drawn. */
async (value) => {
  const block = [...document.querySelectorAll('#settings .block')].find(
    (b) => b.innerText.trim().startsWith('γ') && b.querySelector('input[type=range]'));
  const slider = block.querySelector('input[type=range]');
  const wanted = `question–report, weight ${value.toFixed(2)}`;
  const evidence = document.querySelector('#evidence');
  const drawn = new Promise((done) => new MutationObserver((_, observer) => {
    if (!evidence.querySelector('.legend').textContent.includes(wanted)) return;
    observer.disconnect();
    requestAnimationFrame(() => done(performance.now()));
  }).observe(evidence, {childList: true, subtree: true}));
  const start = performance.now();
  Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set.call(slider, value);
  slider.dispatchEvent(new Event('input', {bubbles: true}));
  return (await drawn - start) / 1000;
}
