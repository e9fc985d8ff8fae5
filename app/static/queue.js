// Ask was pressed, or Enter in the question.
document.addEventListener('click', (event) => {
  if (event.target.closest('#ask')) trigger('asked');
});
document.addEventListener('keydown', (event) => {
  const enter = event.key === 'Enter' && !event.shiftKey;
  if (enter && event.target.closest('#question')) trigger('asked');
});
