(...inputs) => {
  inputs[inputs.length - 1] = document.querySelector('#viewer .viewer')?.dataset.view ?? '';
  return inputs;
}
