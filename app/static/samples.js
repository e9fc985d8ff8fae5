element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-sample]');
  if (button) trigger('click', {sample: Number(button.dataset.sample)});
});
