// The file travels packed, and the browser itself writes it.
watch('value', async () => {
  if (!props.value) return;
  const {name, type, gzip} = JSON.parse(props.value);
  const bytes = Uint8Array.from(atob(gzip), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'));
  const file = new Blob([await new Response(stream).arrayBuffer()], {type});
  const link = document.createElement('a');
  link.href = URL.createObjectURL(file);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
});
