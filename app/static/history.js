const cases = [];
const list = element.querySelector('ol'), save = element.querySelector('button');
watch('value', () => {
  if (!props.value) return;
  const {nonce, ...entry} = JSON.parse(props.value);
  entry.time = new Date().toISOString();
  cases.push(entry);
  const item = document.createElement('li');
  const names = {rag_off: 'RAG off', rag: 'RAG', mr_rag: 'MR-RAG'};
  const said = Object.entries(entry.answers).map(([m, words]) => names[m] + ': ' + words);
  const {impression, vote} = entry.reading;
  if (impression) said.push('Your impression: ' + impression);
  if (vote) said.push('Your vote: ' + (names[vote] || 'no difference'));
  const head = document.createElement('b'), rest = document.createElement('span');
  head.textContent = entry.question;
  rest.textContent = said.join(' · ');
  item.append(head, document.createElement('br'), rest);
  list.append(item);
  element.querySelector('.count').textContent = cases.length;
  save.disabled = false;
});
save.addEventListener('click', () => {
  const file = new Blob([JSON.stringify(cases, null, 1)], {type: 'application/json'});
  const link = document.createElement('a');
  link.href = URL.createObjectURL(file);
  link.download = 'mr-rag-visit.json';
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
});
