/* Hands the heatmap to the viewer, which is another component of the page. The body of a
   function that gradio calls once, as viewer.js. */
watch('value', () => document.querySelector('#viewer .viewer')?.dispatchEvent(
  new CustomEvent('heat', {detail: props.value})));
