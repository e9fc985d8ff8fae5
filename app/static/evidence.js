// Keeps the reader's place when the cards are drawn again: what was open, what had the focus.
let focused = null, open = new Set();
element.addEventListener('toggle', (event) => {
  const key = event.target.dataset && event.target.dataset.keep;
  if (key && event.target.isConnected) event.target.open ? open.add(key) : open.delete(key);
}, true);
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-do]');
  if (!button) return;
  if (button.dataset.do === 'compare') {
    const dialog = document.querySelector('#compare dialog');
    if (!dialog) return;
    const image = button.querySelector('img');
    dialog.querySelector('img.theirs').src = image.src;
    dialog.querySelector('img.theirs').alt = image.alt;
    dialog.querySelector('figcaption.theirs').textContent =
      image.alt + ', reduced, document ' + button.dataset.id;
    dialog.showModal();
    return;
  }
  focused = [button.dataset.do, button.dataset.id];
  trigger('click', {do: button.dataset.do, id: button.dataset.id});
});
watch('value', () => {
  for (const details of element.querySelectorAll('details[data-keep]')) {
    details.open = open.has(details.dataset.keep);
  }
  if (!focused) return;
  const buttons = [...element.querySelectorAll('button[data-do]')];
  const id = focused[1];
  const next = buttons.find((b) => b.dataset.id === id && b.dataset.do !== 'compare')
    || buttons.find((b) => b.dataset.do === focused[0]);
  if (next && document.activeElement === document.body) next.focus();
  focused = null;
});
