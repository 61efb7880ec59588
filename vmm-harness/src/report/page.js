
// A link to what is folded up, or to a place in it, opens it.
function openTarget() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!target) return;
  const own = target.querySelector(':scope > details');
  if (own) own.open = true;
  for (let e = target; e; e = e.parentElement) if (e.tagName === 'DETAILS') e.open = true;
  target.scrollIntoView();
}
addEventListener('hashchange', openTarget);
openTarget();

// Long tables get a field to filter their rows by a word.
for (const table of document.querySelectorAll('table[data-filter]')) {
  const field = document.createElement('input');
  field.type = 'search';
  field.placeholder = 'filter rows';
  field.setAttribute('aria-label', 'Filter the rows of: ' + table.caption.textContent);
  field.addEventListener('input', () => {
    const word = field.value.toLowerCase();
    for (const row of table.tBodies[0].rows)
      row.hidden = !row.textContent.toLowerCase().includes(word);
  });
  table.parentElement.before(field);
}

// A click on a command copies it, where the browser lets a page do that.
for (const line of document.querySelectorAll('.command')) {
  if (!navigator.clipboard) break;
  const button = document.createElement('button');
  button.textContent = 'copy';
  button.addEventListener('click', async () => {
    await navigator.clipboard.writeText(line.querySelector('code').textContent);
    button.textContent = 'copied';
  });
  line.append(button);
}
