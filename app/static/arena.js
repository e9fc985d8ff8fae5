// Sorts the arena's table, and opens its rows; both stay while the table is drawn again.
let by = '', up = true;
const open = new Set();
const value = (body) => by === 'method' || by === 'answer'
  ? body.dataset[by].toLowerCase() : Number(body.dataset[by]);
const before = (a, b) => {
  if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b); // last
  const order = typeof a === 'string' ? a.localeCompare(b) : a - b;
  return up ? order : -order;
};
const show = () => {
  const table = element.querySelector('table.arena');
  if (!table) return;
  for (const button of table.querySelectorAll('button[data-sort]')) {
    const chosen = button.dataset.sort === by;
    button.parentElement.setAttribute('aria-sort', !chosen ? 'none' : up ? 'ascending' : 'descending');
  }
  for (const button of table.querySelectorAll('button.open-maps')) {
    const shown = open.has(button.getAttribute('aria-controls'));
    button.setAttribute('aria-expanded', shown);
    document.getElementById(button.getAttribute('aria-controls')).hidden = !shown;
  }
  if (by) table.append(...[...table.tBodies].sort((a, b) => before(value(a), value(b))));
};
element.addEventListener('click', (event) => {
  const button = event.target.closest('button');
  if (!button || !element.contains(button)) return;
  const {sort} = button.dataset, maps = button.getAttribute('aria-controls');
  if (sort) {
    up = sort === by ? !up : true;
    by = sort;
  } else if (maps) {
    open.has(maps) ? open.delete(maps) : open.add(maps);
  }
  show();
  button.focus();
});
watch('value', () => {
  if (!element.querySelector('table.arena')) open.clear();
  show();
});
