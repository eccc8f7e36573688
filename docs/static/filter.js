// A box above the table of all configs: rows without one of its words are hidden.
// Words in the address do the same: configs.html?q=dat+coco
const table = document.querySelector('#all-configs table');
if (table) {
  const rows = [...table.tBodies[0].rows];
  const label = document.createElement('label');
  const box = document.createElement('input');
  const shown = document.createElement('output');
  label.append('Rows with the words ', box);
  box.type = 'search';
  box.value = new URLSearchParams(location.search).get('q') ?? '';
  box.oninput = () => {
    const words = box.value.toLowerCase().split(/\s+/);
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
    const count = rows.filter((row) => !row.hidden).length;
    shown.textContent = ` ${count} of ${rows.length}`;
  };
  box.oninput();
  table.parentElement.before(label, shown);
}
