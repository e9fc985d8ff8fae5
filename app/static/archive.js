// A study, a series, or back to the studies was pressed. The list is then drawn again, and the
// focus goes to its heading, so that the keyboard goes on from there.
let pressed = false;
element.addEventListener('click', (event) => {
  const button = event.target.closest('button');
  if (!button || !element.contains(button)) return;
  pressed = true;
  const {study, series} = button.dataset;
  if (study !== undefined) trigger('study', {study: Number(study)});
  else if (series !== undefined) trigger('series', {series: Number(series)});
  else trigger('back');
});
watch('value', () => {
  if (element.querySelector('.archive-list')) element.scrollIntoView({block: 'nearest'});
  if (!pressed) return;
  pressed = false;
  const heading = element.querySelector('h3');
  if (heading) heading.focus();
});
