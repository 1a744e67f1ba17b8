import json, hashlib
def load(p): return json.load(open(p))
def save(nb,p):
    with open(p,"w") as f:
        json.dump(nb,f,ensure_ascii=False,indent=1); f.write("\n")
def lines(s): 
    s=s.strip("\n"); parts=s.split("\n"); return [x+"\n" for x in parts[:-1]]+[parts[-1]]
def md(s): return dict(cell_type="markdown",id=hashlib.md5(s.encode()).hexdigest()[:8],metadata={},source=lines(s))
def code(s,**meta): return dict(cell_type="code",execution_count=None,id=hashlib.md5(s.encode()).hexdigest()[:8],metadata=meta,outputs=[],source=lines(s))
def index(nb,start):
    found=[i for i,c in enumerate(nb["cells"]) if "".join(c["source"]).startswith(start)]
    assert len(found)==1,(start,found); return found[0]
