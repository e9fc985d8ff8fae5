// Ask or a button of the arena was pressed, or Enter in the question.
document.addEventListener('click', (event) => {
  if (event.target.closest('#ask, #arena-run, #arena-curves')) trigger('asked');
});
document.addEventListener('keydown', (event) => {
  const enter = event.key === 'Enter' && !event.shiftKey;
  if (enter && event.target.closest('#question')) trigger('asked');
});
